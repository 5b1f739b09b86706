"""Regions of an anomaly map: what is connected above a threshold, with place, size and scores.

Shapes: H×W pixels of a map, h×w of a region's box. Pixels touch at their edges and corners (8-connected), as the
regions of AU-PRO do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import skimage  # its parts are loaded where they are used first

SMALLEST_AREA = 1


@dataclass(frozen=True)
class Region:
    """One region of an image, in the map's own pixels.

    Parameters
    ----------
    x, y
        Column and row of its box's upper left pixel, counted from 0.
    width, height
        Of the box, in pixels.
    area
        Pixels of the region itself.
    peak, mean
        Highest and mean value of the map in it, in the map's unit.
    mask
        bool h×w: which pixels of the box belong to it.
    """

    x: int
    y: int
    width: int
    height: int
    area: int
    peak: float
    mean: float
    mask: np.ndarray = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold, without the mask."""
        return {name: getattr(self, name) for name in FIGURES}


FIGURES = ("x", "y", "width", "height", "area", "peak", "mean")


def find_regions(anomaly_map: np.ndarray, threshold: float, smallest_area: int = SMALLEST_AREA) -> list[Region]:
    """List the regions of a map, the largest first; of equal ones that with the higher peak.

    Parameters
    ----------
    anomaly_map
        float H×W.
    threshold
        Pixels above it belong to a region.
    smallest_area
        In pixels; what is smaller is left out.
    """
    found = [
        Region(
            x=part.bbox[1],
            y=part.bbox[0],
            width=part.bbox[3] - part.bbox[1],
            height=part.bbox[2] - part.bbox[0],
            area=int(part.area),
            peak=float(part.intensity_max),
            mean=float(part.intensity_mean),
            mask=part.image,
        )
        for part in skimage.measure.regionprops(
            skimage.measure.label(anomaly_map > threshold, connectivity=2), anomaly_map
        )
        if part.area >= smallest_area
    ]
    return sorted(found, key=lambda region: (-region.area, -region.peak))


def count_regions(anomaly_map: np.ndarray, threshold: float) -> int:
    """Count the regions of a float H×W map that reach `threshold` or lie above it."""
    return int(skimage.measure.label(anomaly_map >= threshold, connectivity=2, return_num=True)[1])


def mask_of(regions: list[Region], size: tuple[int, int]) -> np.ndarray:
    """Return which pixels of an image of (height, width) belong to any of its regions, bool H×W."""
    mask = np.zeros(size, bool)
    for region in regions:
        mask[region.y : region.y + region.height, region.x : region.x + region.width] |= region.mask
    return mask
