"""Images of more than 8 bits a channel: how many of them a camera uses, and how its values become 8 bits.

A file says 16 bits and a camera fills 10, 12 or 14 of them. Divided by 65535, its picture would keep a few grey levels
that no defect moves. So the depth is found on the good training images, or set, and belongs to the model.

Legend of shapes: H, W height and width; C 1, 3 or 4 channels, without an axis where 1.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image

BIT_DEPTHS = (8, 10, 12, 14, 16)
FULL = 16
"""The depth that is meant where nothing else is said: the whole range of a 16 bit file."""

# Pillow cuts 16 bit colour to its high bytes. In the other order of bytes the same decoder gives the low ones.
_NATIVE = "16L" if sys.byteorder == "little" else "16B"
_SWAPPED = {"16B": "16L", "16L": "16B", "16N": "16B" if _NATIVE == "16L" else "16L"}
_COLOUR = ("RGB;", "RGBA;", "RGBX;", "RGBa;")


def smallest_depth(largest: int) -> int:
    """Return the smallest of `BIT_DEPTHS` that holds a value of 0..65535."""
    return next(depth for depth in BIT_DEPTHS if largest < 1 << depth)


def found_depth(largest: Iterable[int | None]) -> int:
    """Return the depth that files use, by the largest value of each (None: one of 8 bits); `FULL` where all have 8."""
    return smallest_depth(max((value for value in largest if value is not None), default=(1 << FULL) - 1))


def to_levels(values: np.ndarray, bit_depth: int = FULL) -> tuple[np.ndarray, int]:
    """Scale values of a depth to 8 bits, the same for every image, so that two images stay comparable.

    Parameters
    ----------
    values : unsigned whole numbers H×W or H×W×C.
    bit_depth : of `BIT_DEPTHS`; 2**bit_depth - 1 becomes 255, what is above it too.

    Returns
    -------
    levels : uint8, of the shape of the values.
    clipped : number of pixels that were above the depth, in any channel.
    """
    top = (1 << bit_depth) - 1
    above = values > top
    clipped = int(np.count_nonzero(above.any(axis=2) if values.ndim == 3 else above))
    return ((np.minimum(values, top).astype(np.uint32) * 255 + top // 2) // top).astype(np.uint8), clipped


def is_wide_colour(image: Image.Image) -> bool:
    """Return whether an image that is not yet loaded has 16 bit in several channels, which Pillow would cut to 8."""
    return any(_rawmode(tile).startswith((*_COLOUR, "LA;")) and ";16" in _rawmode(tile) for tile in image.tile)


def wide_colour(open_: Callable[[], Image.Image], finish: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Return all 16 bits of a colour image: uint16 H×W×3 or H×W×4, the last channel transparency.

    Parameters
    ----------
    open_ : opens the file anew; its image is not loaded.
    finish : loads an image and turns it as its EXIF block says.
    """
    with open_() as image:
        if _rawmode(image.tile[0]).startswith("LA;"):  # grey with transparency: four bytes, which are read as they are
            image.tile = [_with_rawmode(tile, "RGBA") for tile in image.tile]
            parts = np.asarray(finish(image)).astype(np.uint16)
            grey, alpha = parts[..., 0] << 8 | parts[..., 1], parts[..., 2] << 8 | parts[..., 3]
            return np.stack([grey, grey, grey, alpha], axis=2)
        high = np.asarray(finish(image)).astype(np.uint16)
    with open_() as image:
        image.tile = [_with_rawmode(tile, _other_bytes(_rawmode(tile))) for tile in image.tile]
        return high << 8 | np.asarray(finish(image))


def _rawmode(tile: tuple) -> str:
    arguments = tile[3]
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _with_rawmode(tile: tuple, rawmode: str) -> tuple:
    codec, extents, offset, arguments = tile
    changed = (rawmode, *arguments[1:]) if isinstance(arguments, tuple) else rawmode
    # A named tuple since Pillow 11.1, a plain one before.
    return (
        type(tile)(codec, extents, offset, changed) if hasattr(tile, "_fields") else (codec, extents, offset, changed)
    )


def _other_bytes(rawmode: str) -> str:
    mode, _, order = rawmode.partition(";")
    return f"{mode};{_SWAPPED[order]}"
