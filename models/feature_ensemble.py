"""A memory of good features and an autoencoder of them on one frozen network, as one detector.

Neither finds all kinds of defects: the memory (`msad.models.feature_memory`) tells what no good image has shown
anywhere, bent or missing parts above all; the autoencoder with its marker (`msad.models.feature_pyramid`) tells what
should not be where it is, finer, and in print and texture. Each keeps its own maps. An image's score is the mean of
what their scores say in deviations from good images, not what a blend of their maps says: where one map is noise, as
an angle between features of an empty background is, a blend drowns the other. And what one map sees less of than usual
does not excuse what another one sees.

Tensors are named by shape: B images, C channels, H×W pixels or places.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from msad.models.backbones import KNOWN_STRIDES, LITE0
from msad.models.base import Cached, Encoded, make_here
from msad.models.errors import ModelError
from msad.models.feature_memory import FeatureMemory
from msad.models.feature_pyramid import FeaturePyramid
from msad.models.frozen_features import FrozenEncoder
from msad.models.registry import register


@register("feature_ensemble")
class FeatureEnsemble(FrozenEncoder):
    """`feature_pyramid` on strides 4, 8 and 16 and `feature_memory` on 8, 16 and 32 of one network.

    The pyramid is trained, and the memory filled on the way. Its maps are always read the same way, `fixed_scoring`.
    Beside a memory the pyramid may be small, and its training short: a quarter of the arithmetic that it has by itself
    tells good from bad as well (`benchmarks/README.md`).

    Parameters
    ----------
    backbone, light
        See `msad.models.frozen_features.FrozenEncoder`.
    width, bottleneck_channels, dropout
        See `msad.models.feature_pyramid.FeaturePyramid`.
    coarsest_stride, coarsest_share, rows, neighbourhood, neighbours, pose
        See `msad.models.feature_memory.FeatureMemory`; the stride is 16 or 32. The pyramid sees parts where they lie.

    Raises
    ------
    ModelError
        A value is out of range or unknown, or the backbone can't be had.
    """

    loss_terms: ClassVar[tuple[str, ...]] = FeaturePyramid.loss_terms
    default_loss_weights: ClassVar[dict[str, float]] = FeaturePyramid.default_loss_weights
    training_defaults: ClassVar[dict[str, Any]] = {
        **FeaturePyramid.training_defaults,
        "epochs": 25,
        "evaluate_every": 13,
        "steps": 400,
    }
    map_names: ClassVar[tuple[str, ...]] = ("memory", *FeaturePyramid.map_names)
    stepped_maps: ClassVar[tuple[str, ...]] = FeaturePyramid.map_names

    def __init__(
        self,
        backbone: str = LITE0,
        width: int = 128,
        bottleneck_channels: int = 48,
        dropout: float = 0.1,
        coarsest_stride: int = 32,
        coarsest_share: float = 0.5,
        rows: int = 24_000,
        neighbourhood: int = 3,
        neighbours: int = 1,
        light: str = "levelled",
        pose: str = "straightened",
    ) -> None:
        if coarsest_stride not in KNOWN_STRIDES[2:]:
            raise ModelError(f"coarsest_stride is {coarsest_stride!r}; it must be 16 or 32")
        super().__init__(backbone, [stride for stride in KNOWN_STRIDES if stride <= coarsest_stride], light)
        self.pyramid = FeaturePyramid(backbone, width, bottleneck_channels, dropout, light)
        remembered = (coarsest_stride, coarsest_share, rows, neighbourhood, neighbours, light, pose)
        self.memory = FeatureMemory(backbone, KNOWN_STRIDES[1], *remembered)
        del self.pyramid.backbone, self.memory.backbone  # one network for both
        self.trained_stages = len(self.pyramid.channels)

    @property
    def fixed_scoring(self) -> dict[str, Any]:
        """The highest hundredth of each map; the memory says 60 % of whether there is a defect, and 45 % of where."""
        calibration = self.memory.fixed_scoring["calibration"]
        return {
            "weights": {"memory": 3.0, "squared": 1.0, "mask": 1.0},
            "map_weights": {"memory": 5.0, "squared": 3.0, "mask": 3.0},
            "smoothing": 1.0,
            "reduction": "top1",
            "calibration": {"memory": calibration, "squared": "none", "mask": "none"},
            "fusion": "excesses",
            "blend": "excesses",
        }

    def meet(self, good_NHWC: np.ndarray, cached: Cached = make_here) -> None:
        self.memory.meet(good_NHWC, cached)

    def encode(self, image_BCHW: Tensor) -> Encoded:
        """Return the features of all stages; behind the pyramid's, where parts are cut out, the memory's of those."""
        features = super().encode(image_BCHW)
        if not self.memory.straightens:
            return features
        cutout_BChw, back_B6HW = self.memory.cut_out(image_BCHW)
        return (*features[: len(self.pyramid.channels)], *super().encode(cutout_BChw)[1:], back_B6HW)

    def begin(self) -> None:
        self.pyramid.begin()
        self.memory.begin()

    def update(self, features: tuple[Tensor, ...], inside_B1HW: Tensor | None) -> None:
        of_pyramid, of_memory = self._parted(features)
        self.pyramid.update(of_pyramid, inside_B1HW)
        if inside_B1HW is not None:
            inside_B1HW = F.adaptive_avg_pool2d(inside_B1HW, of_memory[0].shape[-2:])
        self.memory.update(of_memory, inside_B1HW)

    def finish(self) -> None:
        self.pyramid.finish()
        self.memory.finish()

    def without(self, left_out_N: np.ndarray, count: int) -> FeatureEnsemble:
        """Leave images out of the memory; the pyramid, which took steps, knows them."""
        other = copy.deepcopy(self)
        other.memory = self.memory.without(left_out_N, count)
        return other

    def _parted(self, features: Encoded) -> tuple[Encoded, Encoded]:
        """Return what the pyramid sees and what the memory sees."""
        stages = len(self.pyramid.channels)
        return features[:stages], features[stages:] if self.memory.straightens else features[1:]

    def _losses(self, clean: Encoded, corrupted: Encoded, mask_B1HW: Tensor, terms: list[str]) -> dict[str, Tensor]:
        return self.pyramid._losses(self._parted(clean)[0], self._parted(corrupted)[0], mask_B1HW, terms)

    def _maps(self, image: Encoded) -> dict[str, Tensor]:
        of_pyramid, of_memory = self._parted(image)
        return self.memory._maps(of_memory) | self.pyramid._maps(of_pyramid)
