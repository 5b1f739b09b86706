"""What a bundle says about one image, and how a notebook shows it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from msad.bundle.images import ImageLike, to_array
from msad.data_io.image_statistics import image_statistics
from msad.data_io.wide import FULL
from msad.models.regions import SMALLEST_AREA, Region, find_regions

SHOWN_SIZE = (640, 640)  # in a notebook, at most


@dataclass(frozen=True)
class Prediction:
    """What a bundle says about one image.

    Parameters
    ----------
    score
        Higher is more anomalous; only comparable with scores of the same bundle.
    is_anomalous
        Whether the score is above the threshold.
    anomaly_map
        float32 H×W at the image's own size.
    threshold, pixel_threshold
        Of the bundle: above them an image is anomalous, and a pixel of the map belongs to a region.
    source
        The image as it was given, for the picture that a notebook shows.
    bit_depth
        Bits as which the source is read where it has more than 8.
    roi
        The bundle's region of interest, bool, at the model's size; None where all of the image counts. Outside of it
        the map is as low as anywhere inside.
    """

    score: float
    is_anomalous: bool
    anomaly_map: np.ndarray = field(repr=False)
    threshold: float = field(default=math.nan, repr=False)
    pixel_threshold: float = field(default=math.inf, repr=False)
    source: ImageLike | None = field(default=None, repr=False, compare=False)
    bit_depth: int = field(default=FULL, repr=False, compare=False)
    roi: np.ndarray | None = field(default=None, repr=False, compare=False)

    def regions(self, smallest_area: int = SMALLEST_AREA, threshold: float | None = None) -> list[Region]:
        """List what is connected in the map above a threshold, the largest first, in the image's own pixels.

        Parameters
        ----------
        smallest_area
            In pixels; what is smaller is left out.
        threshold
            Replaces `pixel_threshold`.
        """
        return find_regions(self.anomaly_map, self.pixel_threshold if threshold is None else threshold, smallest_area)

    def statistics(self) -> dict[str, float]:
        """Return plain statistics of the image, see `msad.data_io.image_statistics`."""
        return image_statistics(to_array(self.source, self.bit_depth))

    def overlay(self) -> np.ndarray:
        """Return the image with the map over it and its regions outlined, uint8 H×W×3."""
        from msad.bundle.heatmaps import overlay

        image = to_array(self.source, self.bit_depth)
        return overlay(image, self.anomaly_map, self.threshold, self.regions(), self.roi)

    def _repr_png_(self) -> bytes | None:
        from msad.bundle.jupyter import png

        return None if self.source is None else png(self.overlay(), SHOWN_SIZE)

    def _repr_html_(self) -> str | None:
        from msad.bundle.jupyter import image_tag

        if self.source is None:
            return None
        verdict = "anomalous" if self.is_anomalous else "good"
        regions = self.regions()
        listed = f"regions: {len(regions)}"
        if regions:
            one = regions[0]
            listed += f", the largest {one.width}×{one.height} pixels at x {one.x}, y {one.y}, peak {one.peak:.3g}"
        caption = f"<p><b>{verdict}</b>: score {self.score:.3g}, threshold {self.threshold:.3g}; {listed}</p>"
        return caption + image_tag(self.overlay(), SHOWN_SIZE)
