"""The size at which a category's photographs are worked on: a square, or a rectangle of their own shape.

Squeezed into a square, a long photograph loses in one direction what makes a thin defect visible, and gains nothing in
the other. So a size that is one number is a budget: as many pixels as a square of that side has, in the shape of the
category's photographs where they have one.

Legend: a ratio is height over width.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable
from pathlib import Path

from msad.data_io.decode import Size, height_width, read_header
from msad.data_io.errors import DataError
from msad.data_io.parallel import map_in_threads

ALIKE = 1.1  # photographs have one shape where each ratio is within this factor of the median
NEARLY_SQUARE = 1.15  # such photographs stay squares: little is squeezed, and squares may be turned by quarters
MOST_ELONGATED = 6.0
MULTIPLE = 32
"""Of the sides of a rectangle, in pixels: every architecture's strides divide it."""

_LEAST = 16  # pixels of a side


def parse_size(value: object) -> int | str:
    """Return a size as settings have it, `256`, `"256"` or `"416x160"`, as a number or as `HEIGHTxWIDTH`.

    Raises
    ------
    DataError : it is neither, or a side is below 16 pixels; the text says what may be given.
    """
    text = re.sub(r"\s*[x×]\s*", "x", str(value).strip().lower())
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,12}(x\d{1,12})?", text):
        raise DataError(
            f"{value!r} is no size in pixels: give one number, as 256, or height and width, as 416x160 for photographs "
            "that are higher than wide"
        )
    size = text if "x" in text else int(text)
    if min(height_width(size)) < _LEAST:
        raise DataError(f"{value!r} is too small: every side must have at least {_LEAST} pixels")
    return size


def plain_size(size: Size) -> int | str:
    """Return a size as it is written down: the side of a square as a number, else `HEIGHTxWIDTH`."""
    height, width = height_width(size)
    return height if height == width else f"{height}x{width}"


def square_side(size: Size) -> int:
    """Return the side in pixels of the square of as many pixels."""
    return round(math.sqrt(math.prod(height_width(size))))


def common_ratio(sizes: Iterable[tuple[int, int]]) -> float | None:
    """Return the median ratio of photographs of one shape; None where their shapes differ, or there are none.

    Parameters
    ----------
    sizes : (height, width) of each in pixels.
    """
    ratios = [height / width for height, width in sizes]
    if not ratios:
        return None
    median = statistics.median(ratios)
    return median if all(1 / ALIKE <= ratio / median <= ALIKE for ratio in ratios) else None


def find_ratio(paths: Iterable[Path]) -> float | None:
    """Return `common_ratio` of image files, of which only the headers are read.

    Raises
    ------
    DataError : a file cannot be read.
    """
    return common_ratio((header.height, header.width) for header in map_in_threads(read_header, paths))


def fitted_size(size: int | str, ratio: float | None, tile: int = 0) -> int | str:
    """Return the size that photographs of one shape are worked on at.

    Parameters
    ----------
    size : as `parse_size` gives it. `HEIGHTxWIDTH` is taken as it is, a number as the side of a square of as many
        pixels as there may be.
    ratio : see `common_ratio`.
    tile : side in pixels of the tiles that the network sees; 0: it sees whole images.

    Returns
    -------
    The number, or `HEIGHTxWIDTH` of about as many pixels, both multiples of 32, no side more than about 6 times the
    other. It is the number where shapes differ or are nearly square, and where a tile would not fit the rectangle.
    """
    if isinstance(size, str):
        return plain_size(size)
    if ratio is None or max(ratio, 1 / ratio) < NEARLY_SQUARE:
        return size
    stretch = math.sqrt(min(max(ratio, 1 / MOST_ELONGATED), MOST_ELONGATED))
    sides = tuple(max(MULTIPLE, MULTIPLE * round(side / MULTIPLE)) for side in (size * stretch, size / stretch))
    return size if sides[0] == sides[1] or min(sides) <= tile else plain_size(sides)
