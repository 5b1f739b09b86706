"""What a product's good images say about it: their symmetries and an empty background, found once and kept.

To judge the symmetries takes seconds; trials on the same images need not wait for it again.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np

from msad.models.synthesis.foreground import Background, empty_background
from msad.models.synthesis.symmetry import Symmetries, find_symmetries

VERSION = 1
"""To be raised whenever the same images are judged otherwise."""


class Appearance:
    """Symmetries and background of good images, each found when it is first asked for.

    Parameters
    ----------
    good_NHWC
        uint8 images of the training split.
    """

    def __init__(self, good_NHWC: np.ndarray) -> None:
        self._good_NHWC = good_NHWC

    @functools.cached_property
    def symmetries(self) -> Symmetries:
        """See `msad.models.synthesis.symmetry.find_symmetries`."""
        return find_symmetries(self._good_NHWC)

    @functools.cached_property
    def background(self) -> Background | None:
        """See `msad.models.synthesis.foreground.empty_background`."""
        return empty_background(self._good_NHWC)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Find everything, as arrays for a file; what there is none of is not a number."""
        found = [*self.background.colour, self.background.tolerance] if self.background else [np.nan] * 4
        return {
            "ratios": np.array([self.symmetries.ratios.get(name, np.nan) for name in Symmetries.NAMES]),
            "background": np.array(found, np.float64),
        }

    @classmethod
    def from_arrays(cls, good_NHWC: np.ndarray, arrays: Mapping[str, np.ndarray]) -> Appearance:
        """Take what `to_arrays` found on these images."""
        appearance = cls(good_NHWC)
        ratios = zip(Symmetries.NAMES, arrays["ratios"].tolist(), strict=True)
        appearance.symmetries = Symmetries.judged({name: ratio for name, ratio in ratios if not np.isnan(ratio)})
        *colour, tolerance = arrays["background"].tolist()
        there = not np.isnan(tolerance)
        appearance.background = Background(np.array(colour, np.float32), tolerance) if there else None
        return appearance


def appearance_of(good: np.ndarray | Appearance) -> Appearance:
    """Return the appearance of good images, or the one given."""
    return good if isinstance(good, Appearance) else Appearance(good)
