"""Plain statistics of a photograph, by which a change of light, focus or camera shows before a network is asked.

Legend of shapes: N images; H, W an image's own height and width.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from msad.data_io.cache import PIXELS_VERSION, cached_arrays, digests
from msad.data_io.decode import decode
from msad.data_io.parallel import map_in_threads
from msad.data_io.wide import FULL

STATISTICS = ("brightness", "contrast", "sharpness", "noise", "pixels")
VERSION = 1
"""To be raised whenever the same image gets other statistics."""

_LOOKED_AT = 1 << 18  # pixels of an image: all of one of 512 × 512
_TILE, _TILES = 128, 4  # of a larger one so many tiles along each side, at its own resolution
_GREY = np.array([0.299, 0.587, 0.114], np.float32)


def image_statistics(image: np.ndarray) -> dict[str, float]:
    """Measure a photograph.

    Parameters
    ----------
    image : uint8 H×W×3, RGB.

    Returns
    -------
    By `STATISTICS`: the mean of the grey levels, 0 to 255, and their standard deviation; the root mean square of the
    grey levels' gradient over that deviation (Tenengrad: Krotkov, "Focusing", IJCV 1988), which light does not change;
    the standard deviation of the noise in grey levels (Immerkær, "Fast noise variance estimation", CVIU 1996); and
    H × W. Of an image of more than 512 × 512 pixels brightness and contrast are those of a regular part of the pixels,
    the others those of sixteen tiles.
    """
    height, width = image.shape[:2]
    step = max(1, math.ceil(math.sqrt(height * width / _LOOKED_AT)))
    sampled = image[::step, ::step] @ _GREY
    contrast = float(sampled.std())
    tiles = [tile @ _GREY for tile in _tiles(image)] if step > 1 else [sampled]
    gradients, rough, count = 0.0, 0.0, 0
    for grey in tiles:
        across, down = grey[1:-1, 2:] - grey[1:-1, :-2], grey[2:, 1:-1] - grey[:-2, 1:-1]
        gradients += float((across**2 + down**2).sum()) / 4
        along = grey[:, :-2] - 2 * grey[:, 1:-1] + grey[:, 2:]
        rough += float(np.abs(along[:-2] - 2 * along[1:-1] + along[2:]).sum())
        count += across.size
    gradient = math.sqrt(gradients / count) if count else 0.0
    noise = math.sqrt(math.pi / 2) * rough / (6 * count) if count else 0.0
    values = float(sampled.mean()), contrast, gradient / contrast if contrast else 0.0, noise, float(height * width)
    return dict(zip(STATISTICS, values, strict=True))


def statistics_of_files(
    paths: Sequence[Path], bit_depth: int = FULL, directory: Path | str | None = None
) -> dict[str, np.ndarray]:
    """Measure image files, once per node for the same contents.

    Parameters
    ----------
    paths, bit_depth, directory : see `msad.data_io.cache.load_images`.

    Returns
    -------
    float64 N of each of `STATISTICS`.

    Raises
    ------
    DataError : a file cannot be read or decoded.
    """
    content = hashlib.sha256("".join(digests(paths, directory)).encode()).hexdigest()
    key = f"statistics v{VERSION} of pixels v{PIXELS_VERSION}, {bit_depth} bits, {content}"
    return dict(cached_arrays(key, partial(_measure, paths, bit_depth), directory))


def _measure(paths: Sequence[Path], bit_depth: int) -> dict[str, np.ndarray]:
    found = list(map_in_threads(lambda path: image_statistics(decode(path, bit_depth=bit_depth)), paths))
    return {name: np.array([one[name] for one in found], np.float64) for name in STATISTICS}


def _tiles(image: np.ndarray) -> list[np.ndarray]:
    rows, columns = (np.linspace(0, max(0, side - _TILE), _TILES).astype(int) for side in image.shape[:2])
    return [image[top : top + _TILE, left : left + _TILE] for top in rows for left in columns]
