"""The scale that anomaly maps are shown and kept on: it is anchored at the image threshold.

A map is in deviations from good images (see `msad.models.scorer`): 0 is typical of good.
"""

from __future__ import annotations

import numpy as np

# With the reduction `mean` the threshold belongs to averages and says nothing about one pixel.
LEAST_ANCHOR = 3.0
ANCHOR_GREY = 8192
"""Grey value of the anchor in a 16 bit map, so that white is eight times the threshold."""


def anchor(threshold: float) -> float:
    """Return the pixel value in the middle of the colour scale: the threshold, but at least three deviations."""
    return max(threshold, LEAST_ANCHOR)


def grey_step(threshold: float) -> float:
    """Return how many deviations one grey value of a 16 bit map stands for."""
    return anchor(threshold) / ANCHOR_GREY


def to_grey(anomaly_map: np.ndarray, threshold: float) -> np.ndarray:
    """Turn a map into 16 bit grey: `map = grey × grey_step`, exact to half a grey value between 0 and 8 anchors.

    What is below 0, more usual than the average good image, becomes 0; what is above 8 anchors becomes white.

    Parameters
    ----------
    anomaly_map
        float H×W, in deviations.
    threshold
        The one that `anchor` is taken from; its grey value is always 8192.

    Returns
    -------
    numpy.ndarray
        uint16 H×W.
    """
    return np.clip(np.rint(anomaly_map / grey_step(threshold)), 0, 65535).astype(np.uint16)
