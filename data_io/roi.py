"""The region of interest of a category: a mask that its owner draws once, outside of which nothing counts.

It is white (or 1) inside and black outside, at the photographs' own size or smaller, and lies where the layout says:
`roi.png` beside `train`, mostly.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from msad.data_io.decode import Size, height_width, read_header, read_mask, resize_mask
from msad.data_io.errors import DataError
from msad.data_io.layout import AUTO, find_layout
from msad.data_io.shape import ALIKE, common_ratio

SMALLEST_SHARE = 0.01
"""Of the image, below which a region is refused: the network would be shown little but what does not count."""


def find_roi(root: Path | str, category: str, layout: str = AUTO) -> Path | None:
    """Return the file that says where a category's region of interest is; None where there is none."""
    path = find_layout(root, layout).roi(Path(root), category)
    return path if path.is_file() else None


def load_roi(root: Path | str, category: str, size: Size, example: Path, layout: str = AUTO) -> np.ndarray | None:
    """Read a category's region of interest at the size of the network's images.

    Parameters
    ----------
    root, category, layout : see `find_roi`.
    size : of the network's images.
    example : one of the photographs, whose shape it must have.

    Returns
    -------
    bool array h×w of that size, by the nearest pixel; None where there is none.

    Raises
    ------
    DataError : the file cannot be decoded, or is refused by `read_roi`; or at this size no pixel is inside.
    """
    path = find_roi(root, category, layout)
    if path is None:
        return None
    header = read_header(example)
    inside = resize_mask(read_roi(path, [(header.height, header.width)]), size)
    if not inside.any():
        high, wide = height_width(size)
        raise DataError(f"{path}: nothing is left of the region at {high}×{wide} pixels; raise image_size")
    return inside


def read_roi(path: Path, sizes: Collection[tuple[int, int]]) -> np.ndarray:
    """Read a region of interest.

    Parameters
    ----------
    path : the file.
    sizes : (height, width) of the photographs that it is for.

    Returns
    -------
    bool array H×W, True inside.

    Raises
    ------
    DataError : it cannot be decoded; it marks nothing, or too little; the photographs have no common shape, or another
        one than it has.
    """
    inside = read_mask(path).marked
    if not inside.any():
        raise DataError(f"{path}: marks nothing: draw what is to be inspected in white, the rest black; or remove it")
    if inside.mean() < SMALLEST_SHARE:
        raise DataError(
            f"{path}: only {inside.mean():.2%} of the image is inside, less than {SMALLEST_SHARE:.0%}: crop the "
            "photographs instead, so that the network sees what is to be inspected"
        )
    ratio, (height, width) = common_ratio(sizes), inside.shape
    if sizes and ratio is None:
        raise DataError(f"{path}: the photographs have different shapes, so no region fits them all; remove it")
    if ratio is not None and not 1 / ALIKE <= height / width / ratio <= ALIKE:
        high, wide = next(iter(sizes))
        raise DataError(
            f"{path}: is {width}×{height}, of another shape than the photographs, {wide}×{high} the first; draw it "
            "over one of them"
        )
    return inside
