"""Pixel metrics of a whole test set, exact, from one sort.

Only the thresholds at defect pixels matter to any of the metrics, and defects are few. So the values of normal pixels
are sorted alone, without a payload (numpy sorts those with SIMD), and every defect value is looked up among them.

Shapes: H×W pixels of one image; P defect pixels, K distinct values among them.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from models.errors import ModelError
from models.region_overlap import area_below, region_sizes


@dataclass(frozen=True)
class PixelMetrics:
    """Figures over all pixels of a set of images, each in [0, 1].

    `auroc`; `average_precision` and its chance level `prevalence`; `aupro_30` and `aupro_05`, the area under the
    region-overlap curve up to a false-positive rate of 0.3 and 0.05. nan where a figure has no meaning: everything but
    `prevalence` without a defect pixel; `auroc`, `aupro_30` and `aupro_05` without a normal pixel. Constant maps give
    0.5, the prevalence, 0.15 and 0.025: what a coin would.
    """

    auroc: float
    average_precision: float
    prevalence: float
    aupro_30: float
    aupro_05: float


def pixel_metrics(maps: Iterable[np.ndarray], masks: Iterable[np.ndarray]) -> PixelMetrics:
    """Measure anomaly maps against ground-truth masks.

    Both are read once and in step, so generators keep the memory down to the maps' values themselves. Ties count half
    in the AUROC, are one threshold in the average precision and a straight piece of the region-overlap curve.

    Parameters
    ----------
    maps
        H×W floats each, higher = more anomalous; sizes may differ from image to image. float32 is fastest.
    masks
        H×W each, nonzero = defect, of the size of their map.

    Returns
    -------
    PixelMetrics

    Raises
    ------
    ModelError
        A map has a NaN, or differs from its mask in size, or there are more of one than of the other, or none at all.
    """
    normal, defect, sizes, regions = _collect(maps, masks)
    total_normal, total_defect = sum(map(len, normal)), len(defect)
    prevalence = total_defect / (total_normal + total_defect)
    if not total_defect:
        return PixelMetrics(np.nan, np.nan, prevalence, np.nan, np.nan)

    order = np.argsort(defect)
    defect, weight = defect[order], 1.0 / sizes[order]
    starts = np.flatnonzero(np.append(True, defect[1:] != defect[:-1]))
    values_K = defect[starts]
    below_K, not_above_K = _rank(normal, values_K)

    # From the highest threshold to the lowest.
    true_K = np.diff(np.append(starts, total_defect))[::-1]
    found_K = np.cumsum(true_K)
    false_before_K = (total_normal - not_above_K)[::-1]
    false_K = (total_normal - below_K)[::-1]
    average_precision = float(np.sum(true_K * (found_K / (found_K + false_K))) / total_defect)
    if not total_normal:
        return PixelMetrics(np.nan, average_precision, prevalence, np.nan, np.nan)
    beaten_K = (below_K + not_above_K)[::-1]  # twice the normal pixels below, ties once
    auroc = int(np.sum(true_K * beaten_K)) / (2 * total_defect * total_normal)  # whole numbers: exact

    overlap_K = np.cumsum(np.add.reduceat(weight, starts)[::-1]) / regions
    before_K = np.concatenate([[0.0], overlap_K[:-1]])
    x = np.stack([false_before_K, false_K], axis=1).ravel() / total_normal
    y = np.stack([before_K, overlap_K], axis=1).ravel()
    x, y = np.concatenate([[0.0], x, [1.0]]), np.minimum(np.concatenate([[0.0], y, [1.0]]), 1.0)
    return PixelMetrics(auroc, average_precision, prevalence, area_below(x, y, 0.3), area_below(x, y, 0.05))


def _collect(
    maps: Iterable[np.ndarray], masks: Iterable[np.ndarray]
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, int]:
    """Split all pixels: normal values per image; and for the defect pixels their values and their regions' sizes."""
    normal, defect, sizes, regions = [], [], [], 0
    try:
        for index, (values, truth) in enumerate(zip(maps, masks, strict=True)):
            values, mask = np.asarray(values), np.asarray(truth) != 0
            if values.shape != mask.shape or values.ndim != 2:
                raise ModelError(
                    f"anomaly map {index} is {values.shape}, its mask {mask.shape}: both must be H×W of one size"
                )
            if not np.issubdtype(values.dtype, np.floating):
                values = values.astype(np.float64)
            if values.size and np.isnan(values.min()):
                raise ModelError(f"anomaly map {index} has NaN values: the model that made it is broken")
            of_pixel, count = region_sizes(mask)
            if count:
                defect.append(values[mask])
                sizes.append(of_pixel)
                regions += count
                normal.append(values[~mask])
            else:
                normal.append(values.ravel())
    except ValueError as error:
        if isinstance(error, ModelError) or "zip()" not in str(error):
            raise
        raise ModelError(f"as many anomaly maps as masks are needed: {error}") from error
    if not normal:
        raise ModelError("pixel metrics need at least one anomaly map with its mask")
    return normal, np.concatenate(defect or [np.zeros(0)]), np.concatenate(sizes or [np.zeros(0, int)]), regions


def _rank(normal: list[np.ndarray], values_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count, for every sorted value, the normal pixels below it and those not above it.

    Two halves on two threads (numpy lets go of the interpreter while sorting): counts simply add up.
    """
    dtype = np.result_type(values_K, *normal)
    values_K = values_K.astype(dtype, copy=False)

    def count(part: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        if not sum(map(len, part)):
            return np.zeros(len(values_K), np.int64), np.zeros(len(values_K), np.int64)
        pixels = np.concatenate(part, dtype=dtype)
        pixels.sort()
        below = np.searchsorted(pixels, values_K, side="left")
        tied = pixels[np.minimum(below, len(pixels) - 1)] == values_K
        not_above = below.copy()
        not_above[tied] = np.searchsorted(pixels, values_K[tied], side="right")
        return below, not_above

    middle = (len(normal) + 1) // 2
    with ThreadPoolExecutor(2) as pool:
        (below, not_above), (below_2, not_above_2) = pool.map(count, (normal[:middle], normal[middle:]))
    return below + below_2, not_above + not_above_2
