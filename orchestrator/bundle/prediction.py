"""What a bundle says about one image, and how a notebook shows it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from msad.bundle.images import ImageLike, to_array
from msad.data_io.wide import FULL

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
    threshold
        Of the bundle.
    source
        The image as it was given, for the picture that a notebook shows.
    bit_depth
        Bits as which the source is read where it has more than 8.
    """

    score: float
    is_anomalous: bool
    anomaly_map: np.ndarray = field(repr=False)
    threshold: float = field(default=math.nan, repr=False)
    source: ImageLike | None = field(default=None, repr=False, compare=False)
    bit_depth: int = field(default=FULL, repr=False, compare=False)

    def overlay(self) -> np.ndarray:
        """Return the image with the map over it, uint8 H×W×3; see `msad.bundle.heatmaps.overlay`."""
        from msad.bundle.heatmaps import overlay

        return overlay(to_array(self.source, self.bit_depth), self.anomaly_map, self.threshold)

    def _repr_png_(self) -> bytes | None:
        from msad.bundle.inline import png

        return None if self.source is None else png(self.overlay(), SHOWN_SIZE)

    def _repr_html_(self) -> str | None:
        from msad.bundle.inline import image_tag

        if self.source is None:
            return None
        verdict = "anomalous" if self.is_anomalous else "good"
        caption = f"<p><b>{verdict}</b>: score {self.score:.3g}, threshold {self.threshold:.3g}</p>"
        return caption + image_tag(self.overlay(), SHOWN_SIZE)
