"""Photographs that lie on every machine that has scikit-image: nothing to download.

They are read from scikit-image's own folder; its data/README.txt states where each is from and its terms.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from msad.data_io.decode import Size, decode, height_width, resize
from msad.data_io.errors import DataError

# Chosen for dense and differing structure: a photograph with an empty sky fills a defect with nothing.
TEXTURES = (
    "brick.png",
    "grass.png",
    "gravel.png",
    "ihc.png",
    "coffee.png",
    "chelsea.png",
    "coins.png",
    "motorcycle_left.png",
    "hubble_deep_field.jpg",
    "retina.jpg",
    "page.png",
    "text.png",
)
_CROPS_PER_SIDE = 2

VERSION = 1
"""To be raised whenever `load_textures` gives other pixels."""


def load_photograph(name: str) -> np.ndarray:
    """One of scikit-image's photographs by file name, as uint8 H×W×3.

    Raises
    ------
    DataError : scikit-image is not installed or ships no such file.
    """
    package = find_spec("skimage")
    if package is None or package.origin is None:
        raise DataError(f"{name}: scikit-image, which ships it, is not installed; pip install scikit-image")
    return decode(Path(package.origin).parent / "data" / name)


def load_textures(size: Size) -> np.ndarray:
    """Crops of the photographs, as textures to fill synthetic corruption with.

    Each photograph gives four crops, one of each corner, of half to all of what fits into it, so that structures come
    at more than one scale. DRAEM (arXiv 2108.07610) takes its textures from DTD and finds ten of them enough.

    Parameters
    ----------
    size : of the crops, whose shape is not squeezed.

    Returns
    -------
    uint8 array 48×h×w×3 of that size, RGB; always the same.
    """
    crops = []
    high, wide = height_width(size)
    for name in TEXTURES:
        photograph = load_photograph(name)
        height, width = photograph.shape[:2]
        for corner in range(_CROPS_PER_SIDE**2):
            share = 0.5 + corner / 6
            rows = round(min(height, width * high / wide) * share)
            columns = round(min(width, height * wide / high) * share)
            top = (height - rows) * (corner // _CROPS_PER_SIDE)
            left = (width - columns) * (corner % _CROPS_PER_SIDE)
            crops.append(resize(photograph[top : top + rows, left : left + columns], size))
    return np.stack(crops)


def cut_texture(photograph: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A square piece of a photograph from a random place, slightly turned and scaled.

    Parameters
    ----------
    photograph : uint8 H×W×3.
    size : side of the piece in pixels.

    Returns
    -------
    float32 array size×size×3 in [0, 1].
    """
    shortest = min(photograph.shape[:2])
    side = rng.uniform(0.42, 0.5) * shortest
    # A square turned by a quarter turn at most fits in a circle of its diagonal.
    reach = side / np.sqrt(2)
    x, y = (rng.uniform(reach, extent - reach) for extent in (photograph.shape[1], photograph.shape[0]))
    turn = np.deg2rad(rng.uniform(-4, 4))
    step = side / size
    cosine, sine = np.cos(turn) * step, np.sin(turn) * step
    middle = size / 2
    affine = (cosine, -sine, x - middle * (cosine - sine), sine, cosine, y - middle * (sine + cosine))
    piece = Image.fromarray(photograph).transform(
        (size, size), Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC
    )
    return np.asarray(piece, np.float32) / 255
