"""Which bit depth the good training images of a category use, where nobody has set it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from msad.data_io.decode import read_header, read_image
from msad.data_io.parallel import map_in_threads
from msad.data_io.wide import found_depth


def find_bit_depth(paths: Iterable[Path]) -> int:
    """Return the smallest of `msad.data_io.wide.BIT_DEPTHS` that holds every value of image files.

    Only files of more than 8 bits are decoded; where there is none it is 16. A check of the data
    (`msad.data_io.check`), which decodes all of them, says the same.

    Raises
    ------
    DataError : a file cannot be read.
    """
    return found_depth(map_in_threads(_largest, paths))


def _largest(path: Path) -> int | None:
    return read_image(path).largest if read_header(path).wide else None
