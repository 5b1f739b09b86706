"""From maps of good images to the value above which a pixel belongs to a region, at a stated rate of false regions.

Of a good image every region is false. The threshold is the lowest above which all held-out good images together have no
more regions than the rate allows, also for every higher threshold (as one rises, regions vanish but also part). With n
images and k regions, k + 1 <= rate × (n + 1): the image to come may have one too. This is conformal risk control
(Angelopoulos, Bates, Fisch, Lei and Schuster, ICLR 2024, arXiv 2208.02814) of the share of good images with a region,
which the number of regions bounds; so on average over all models made like this one at most that share of good images
shows one. As with scores, a map counts only if the scorer had not seen its image (`thresholds.LeaveOneOut`), and n
images can promise no rate below 1 / (n + 1).

Shapes: H×W pixels of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import maximum_filter

from msad.models.errors import ModelError
from msad.models.regions import count_regions


@dataclass(frozen=True)
class FalseRegions:
    """What a pixel threshold promises, if tomorrow's good images are like the held-out ones.

    Parameters
    ----------
    target
        False regions per good image that were asked for.
    held_out
        Good images that the threshold rests on.
    regions
        How many their maps have above it.
    expected
        The share of good images with a region is at most this on average: (`regions` + 1) / (`held_out` + 1).
    """

    target: float
    held_out: int
    regions: int
    expected: float

    @classmethod
    def of(cls, good_maps: Sequence[np.ndarray], threshold: float, target: float) -> FalseRegions:
        """Count the regions above a threshold."""
        regions = sum(count_regions((one > threshold).astype(np.float32), 1.0) for one in good_maps)
        return cls(float(target), len(good_maps), regions, (regions + 1) / (len(good_maps) + 1))

    def to_dict(self) -> dict[str, float]:
        """Give plain values that JSON can hold."""
        return vars(self).copy()


def pixel_threshold(good_maps: Sequence[np.ndarray], rate: float) -> tuple[float, FalseRegions]:
    """Choose the value above which a pixel belongs to a region.

    Parameters
    ----------
    good_maps
        float H×W of each held-out good image, by scorers that were not fitted on it.
    rate
        False regions per good image, above 0.

    Returns
    -------
    tuple
        The threshold, and what it promises. With fewer than 1 / rate - 1 images it is the highest value of all maps.

    Raises
    ------
    ModelError
        There is no map, a value is not finite, or the rate is out of range.
    """
    maps = [np.asarray(one) for one in good_maps]
    if not maps or not all(np.isfinite(one).all() for one in maps):
        raise ModelError(f"a pixel threshold needs finite maps of good images, got {len(maps)} maps")
    if not rate > 0:
        raise ModelError(f"a rate of false regions per image must be above 0, got {rate}")
    allowed = max(0, int((len(maps) + 1) * rate + 1e-9) - 1)
    highest = np.array([one.max() for one in maps])
    cut, found = float(highest.max()), 0
    # A region more appears only where the threshold falls below a local maximum; everywhere else it can but join two.
    for peak in np.unique(np.concatenate([_local_maxima(one) for one in maps]))[::-1]:
        there = sum(count_regions(maps[index], peak) for index in np.flatnonzero(highest >= peak))
        cut = float(peak)
        if there > allowed:
            break
        found = there
    return cut, FalseRegions(float(rate), len(maps), found, (found + 1) / (len(maps) + 1))


def _local_maxima(one: np.ndarray) -> np.ndarray:
    return one[one == maximum_filter(one, size=3, mode="nearest")]
