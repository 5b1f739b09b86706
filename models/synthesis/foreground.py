"""Where the product is on its photograph, guessed from the good images alone.

Shapes: N good images, H×W pixels, 3 colours.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Background(NamedTuple):
    """An empty background's colour, float32 RGB, and how far from it the background strays, both in grey levels."""

    colour: np.ndarray
    tolerance: float


def empty_background(good_NHWC: np.ndarray) -> Background | None:
    """Find the colour of an empty background, or None where the product fills the picture.

    A background is what an even frame around the images shows: nine tenths of the border pixels of all images have
    nearly one colour.

    Parameters
    ----------
    good_NHWC
        uint8, N×H×W×3.
    """
    images = np.asarray(good_NHWC)
    border = images[:, _frame(images)].reshape(-1, 3).astype(np.float32)
    colour = np.median(border, axis=0)
    spread = float(np.quantile(np.abs(border - colour).max(axis=1), 0.9))
    return Background(colour, max(12.0, 2 * spread)) if spread <= 24 else None


def object_weight(good_NHWC: np.ndarray) -> np.ndarray:
    """Weight every pixel by how surely it belongs to the product and not to an empty background.

    Where there is an `empty_background`, everything far from its colour is the product (holes filled). Otherwise the
    product fills the picture (a texture, a close-up) and every pixel counts.

    Parameters
    ----------
    good_NHWC
        uint8, N×H×W×3.

    Returns
    -------
    np.ndarray
        float32 N×H×W, 1 on the product and 0 on the background; all ones where no background is found.
    """
    from scipy import ndimage

    images = np.asarray(good_NHWC)
    weight = np.ones(images.shape[:3], dtype=np.float32)
    background = empty_background(images)
    if background is None:
        return weight
    for index, image in enumerate(images):
        away = np.abs(image.astype(np.float32) - background.colour).max(axis=2)
        product = ndimage.binary_fill_holes(ndimage.median_filter(away > background.tolerance, size=3))
        # A rim of the product fades into the background; a defect there is a coin toss between the two.
        product = ndimage.binary_erosion(product, iterations=border_depth(*images.shape[1:3]))
        if 0.02 < product.mean() < 0.98:
            weight[index] = product
    return weight


def border_depth(height: int, width: int) -> int:
    """Return how many pixels of an image are its border, which an empty background is looked for in."""
    return max(1, min(height, width) // 64)


def _frame(images_NHWC: np.ndarray) -> np.ndarray:
    frame, depth = np.ones(images_NHWC.shape[1:3], dtype=bool), border_depth(*images_NHWC.shape[1:3])
    frame[depth:-depth, depth:-depth] = False
    return frame
