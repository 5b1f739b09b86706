"""Per-region overlap (PRO): how much of every single defect is found, whatever its size.

The area under the curve of mean overlap against the false-positive rate, up to a limit (Bergmann et al., "The MVTec
Anomaly Detection Dataset", IJCV 2021; limit 0.3). Computed exactly and in O(N log N): a defect pixel of a region with
n pixels counts 1 / (n × regions), so that mean overlap is one weighted sum instead of a loop over thresholds and
regions, and the area a sum over the thresholds at which it rises.

Shapes: H×W pixels; K thresholds, rising.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def region_numbers(mask_HW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the 8-connected regions of one mask and size them.

    Parameters
    ----------
    mask_HW
        bool, H×W, true on defects.

    Returns
    -------
    tuple[np.ndarray, np.ndarray]
        For every true pixel, in row-major order, the number of its region, from 0 (int32); and the pixels of each
        region (int64).
    """
    if not mask_HW.any():  # most images are good, and of large ones the numbers are four times the mask
        return np.zeros(0, np.int32), np.zeros(0, np.int64)
    number_HW, _ = ndimage.label(mask_HW, structure=np.ones((3, 3)))
    of_pixel = number_HW[mask_HW] - 1
    return of_pixel, np.bincount(of_pixel)


def area_below(step_K: np.ndarray, above_K: np.ndarray, from_K: np.ndarray, most: float) -> float:
    """Integrate mean overlap over the number of false positives, from 0 to `most`.

    As the threshold falls, overlap rises by `step_K` at each one: at once, or, where normal pixels are tied with it, in
    a straight line while the false positives rise from `above_K` to `from_K`. In between it is level. So the area is
    the sum of the steps, each times the way that is left to the limit, and areas of several sets of thresholds add up.

    Parameters
    ----------
    step_K
        What each threshold adds to the mean overlap.
    above_K, from_K
        Normal pixels above each threshold, and at or above it; thresholds rise, so these do not.
    most
        The limit, in normal pixels, positive.

    Returns
    -------
    float
        In pixels; to be divided by `most`.
    """
    whole = len(from_K) - int(np.searchsorted(from_K[::-1], most, side="right"))  # the lowest one within the limit
    area = np.sum(step_K[whole:] * (most - (above_K[whole:] + from_K[whole:]) / 2))
    if whole and above_K[whole - 1] < most:
        above, tied = above_K[whole - 1], from_K[whole - 1] - above_K[whole - 1]
        area += step_K[whole - 1] * (most - above) ** 2 / (2 * tied)
    return float(area)
