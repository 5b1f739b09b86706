"""An anomaly map as colours: one scale for every image of a bundle, so that good images look good.

The scale (see `msad.bundle.map_scale`) starts at 0, typical of good, has the image threshold in its middle and ends at
twice the threshold. Colours: matplotlib's `inferno`, even in lightness and safe for colour-blind readers.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np

from msad.bundle.map_scale import anchor
from msad.data_io.decode import resize_mask
from msad.models.regions import Region, mask_of

COLOURS = "inferno"
OUTLINE = (0, 158, 255)  # a blue that stands out from every colour of the scale
OUTSIDE = 3  # what the grey levels outside of the region of interest are divided by
_PIXELS_AT_ONCE = 1 << 18
_TABLE = (matplotlib.colormaps[COLOURS](np.linspace(0, 1, 256))[:, :3] * 255).round().astype(np.uint8)


def overlay(
    image: np.ndarray,
    anomaly_map: np.ndarray,
    threshold: float,
    regions: Sequence[Region],
    roi: np.ndarray | None = None,
) -> np.ndarray:
    """Lay an anomaly map over its image, outline its regions, and darken what is outside of the region of interest.

    Parameters
    ----------
    image
        uint8 H×W×3.
    anomaly_map
        float H×W, in deviations.
    threshold
        Of image scores; it anchors the colours.
    regions
        What to outline, see `msad.models.regions.find_regions`.
    roi
        bool h×w, at any size; None: all of the image counts.

    Returns
    -------
    numpy.ndarray
        uint8 H×W×3. Pixels below half the anchor show the image itself.
    """
    mixed = np.empty_like(image)
    band = max(1, _PIXELS_AT_ONCE // image.shape[1])  # a large photograph in floating point would fill the memory
    for start in range(0, len(image), band):
        rows = slice(start, start + band)
        level = np.clip(anomaly_map[rows] / (2 * anchor(threshold)), 0, 1)
        colour = _TABLE[(level * 255).astype(np.uint8)]
        opacity = (np.clip((level - 0.25) / 0.25, 0, 1) * 0.65)[..., None]
        mixed[rows] = (image[rows] * (1 - opacity) + colour * opacity).round()
    if roi is not None:
        outside = ~resize_mask(roi, image.shape[:2])
        mixed[outside] = image[outside] // OUTSIDE
    mixed[edge(mask_of(regions, anomaly_map.shape))] = OUTLINE
    return mixed


def edge(region: np.ndarray) -> np.ndarray:
    """Mark the pixels of a bool H×W region that touch its outside; about 1/300 of the image wide."""
    inside = region.copy()
    for _ in range(max(1, round(max(region.shape) / 300))):
        grown = np.pad(inside, 1, constant_values=True)
        inside = inside & grown[:-2, 1:-1] & grown[2:, 1:-1] & grown[1:-1, :-2] & grown[1:-1, 2:]
    return region & ~inside
