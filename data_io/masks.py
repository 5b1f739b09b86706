"""One image's ground truth: the union of its mask's files, which must be as large as the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from msad.data_io.decode import read_mask
from msad.data_io.errors import DataError
from msad.data_io.files import mask_files


def read_masks(
    mask_path: Path, threshold: int, image: str, height_width: tuple[int, int]
) -> tuple[np.ndarray, list[Path]]:
    """Where an image is defective.

    Parameters
    ----------
    mask_path : a file, or a folder of files whose union it is.
    threshold : see `msad.data_io.decode.read_mask`.
    image, height_width : the image's name, for errors, and its size in pixels.

    Returns
    -------
    bool H×W, and those of the files that hold 0 and 1 alone.

    Raises
    ------
    DataError : a file that cannot be decoded or has another size than the image.
    """
    whole, of_ones = np.zeros(height_width, bool), []
    for file in mask_files(mask_path):
        read = read_mask(file, threshold)
        if read.marked.shape != height_width:
            found, wanted = (f"{width}×{height}" for height, width in (read.marked.shape, height_width))
            raise DataError(f"{file}: is {found} but its image {image} is {wanted}; make the mask at the image's size")
        whole |= read.marked
        of_ones += [file] * read.of_ones
    return whole, of_ones
