"""One image's ground truth: what the files of its mask mark together, which must be as large as the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from msad.data_io.decode import read_mask
from msad.data_io.errors import DataError
from msad.data_io.files import mask_files
from msad.data_io.layouts.sample import Sample


def read_truth(sample: Sample, threshold: int, height_width: tuple[int, int]) -> tuple[np.ndarray, list[Path]]:
    """Where an image is defective.

    Parameters
    ----------
    sample : the image; nothing is marked where it has no mask.
    threshold : of plain masks, see `msad.data_io.decode.read_mask`.
    height_width : the image's size in pixels.

    Returns
    -------
    bool H×W, and those of the files that hold 0 and 1 alone.

    Raises
    ------
    DataError : a file that cannot be decoded or has another size than the image.
    """
    whole, of_ones = np.zeros(height_width, bool), []
    if sample.mask_path is None:
        return whole, of_ones
    if sample.marking is not None:
        whole |= _fitting(sample.marking.read(sample.mask_path, height_width), sample.mask_path, sample, height_width)
        return whole, of_ones
    for file in mask_files(sample.mask_path):
        read = read_mask(file, threshold)
        whole |= _fitting(read.marked, file, sample, height_width)
        of_ones += [file] * read.of_ones
    return whole, of_ones


def _fitting(marked: np.ndarray, file: Path, sample: Sample, height_width: tuple[int, int]) -> np.ndarray:
    if marked.shape != height_width:
        found, wanted = (f"{width}×{height}" for height, width in (marked.shape, height_width))
        name = sample.path.name
        raise DataError(f"{file}: is {found} but its image {name} is {wanted}; make the mask at the image's size")
    return marked
