"""Where the product is on its photograph, guessed from the good images alone.

Shapes: N good images, H×W pixels, 3 colours.
"""

from __future__ import annotations

import numpy as np


def object_weight(good_NHWC: np.ndarray) -> np.ndarray:
    """Weight every pixel by how surely it belongs to the product and not to an empty background.

    A background is what an even frame around the images shows: when nine tenths of the border pixels of all images
    have one colour, everything far from that colour is the product (holes filled). Otherwise the product fills the
    picture (a texture, a close-up) and every pixel counts.

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
    depth = max(1, min(images.shape[1:3]) // 64)
    frame = np.ones(images.shape[1:3], dtype=bool)
    frame[depth:-depth, depth:-depth] = False
    border = images[:, frame].reshape(-1, 3).astype(np.float32)
    background = np.median(border, axis=0)
    spread = float(np.quantile(np.abs(border - background).max(axis=1), 0.9))
    weight = np.ones(images.shape[:3], dtype=np.float32)
    if spread > 24:
        return weight
    tolerance = max(12.0, 2 * spread)
    for index, image in enumerate(images):
        away = np.abs(image.astype(np.float32) - background).max(axis=2)
        product = ndimage.binary_fill_holes(ndimage.median_filter(away > tolerance, size=3))
        # A rim of the product fades into the background; a defect there is a coin toss between the two.
        product = ndimage.binary_erosion(product, iterations=depth)
        if 0.02 < product.mean() < 0.98:
            weight[index] = product
    return weight
