"""A memory of what good images look like to a frozen network: nothing is trained, so a trial takes seconds.

Two distances from the good images: of every place from the nearest place that good images have shown, at several scales
at once (`msad.models.memory`, after PatchCore, Roth et al., arXiv 2106.08265, which says what differs), and of the
image as a whole from a Gaussian of the deepest stage's pooled features (`msad.models.image_gaussian`, after Rippel et
al., arXiv 2005.14140). What good images may look like is widened by augmented views of them: turned and mirrored where
the good images themselves allow it, and in a little other light.

Tensors are named by shape: B images, C channels, H×W pixels or places, N places or images.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from msad.models.backbones import KNOWN_STRIDES, LITE0
from msad.models.base import Encoded
from msad.models.errors import ModelError
from msad.models.frozen_features import FrozenFeatures
from msad.models.image_gaussian import ImageGaussian
from msad.models.memory import CANDIDATES, Memory, Sample
from msad.models.registry import register
from msad.models.scorer import IMAGE_SCORE

MOST_ROWS = 100_000


@register("feature_memory")
class FeatureMemory(FrozenFeatures):
    """Distances from a bank of good features; no parameter is trained.

    The bank takes two bytes per number: with the defaults 4,000 × 432 × 2 = 3.5 MB of a bundle, beside 11.8 MB
    of the backbone.

    Parameters
    ----------
    backbone
        See `msad.models.backbones.load_backbone`; its weights become part of the model, so a bundle needs no download.
    finest_stride, coarsest_stride
        Pixels of a place of the finest and of the coarsest stage that is remembered, each one of 4, 8, 16, 32; the
        stages between are too. A place has the size of the finest: half the stride is four times the work.
    rows
        Places that are kept, chosen to cover all others, 1 to 100,000.
    neighbourhood
        Side, in places of a stage, of the square that a place is the mean of: 1, 3, 5, ...
    neighbours
        Nearest rows whose distances are averaged.
    light
        `levelled` or `kept`; see `msad.models.frozen_features.FrozenFeatures`.

    Raises
    ------
    ModelError
        A value is out of range or unknown, or the backbone can't be had.
    """

    loss_terms: ClassVar[tuple[str, ...]] = ()
    default_loss_weights: ClassVar[dict[str, float]] = {}
    training_defaults: ClassVar[dict[str, Any]] = {"epochs": 1, "evaluate_every": 1, "batch_size": 16}
    map_names: ClassVar[tuple[str, ...]] = ("memory", IMAGE_SCORE)

    def __init__(
        self,
        backbone: str = LITE0,
        finest_stride: int = 16,
        coarsest_stride: int = 32,
        rows: int = 4000,
        neighbourhood: int = 3,
        neighbours: int = 1,
        light: str = "levelled",
    ) -> None:
        known = ", ".join(map(str, KNOWN_STRIDES))
        for name, value, allowed, rule in (
            ("finest_stride", finest_stride, finest_stride in KNOWN_STRIDES, f"one of {known}"),
            ("coarsest_stride", coarsest_stride, coarsest_stride in KNOWN_STRIDES, f"one of {known}"),
            ("rows", rows, _whole(rows) and 1 <= rows <= MOST_ROWS, f"a whole number from 1 to {MOST_ROWS}"),
            ("neighbourhood", neighbourhood, neighbourhood in range(1, 100, 2), "odd and at least 1"),
            ("neighbours", neighbours, _whole(neighbours) and 1 <= neighbours <= 100, "a whole number from 1 to 100"),
        ):
            if not allowed:
                raise ModelError(f"{name} is {value!r}; it must be {rule}")
        if finest_stride > coarsest_stride:
            raise ModelError(f"finest_stride {finest_stride} is above coarsest_stride {coarsest_stride}: swap them")
        strides = [stride for stride in KNOWN_STRIDES if finest_stride <= stride <= coarsest_stride]
        super().__init__(backbone, strides, light)
        self.finest_stride = finest_stride
        self.memory = Memory(self.backbone.channels, rows, neighbourhood, neighbours)
        self.whole = ImageGaussian(self.backbone.channels[-1])

    @torch.no_grad()
    def adapt(self, clean: Iterable[Encoded]) -> None:
        """Remember the good images, in one pass over them and in bounded memory."""
        channels = self.backbone.channels
        self._sample, self._pooled = Sample(max(CANDIDATES, len(self.memory.bank_RC))), []
        super().adapt(clean)
        places_NC, pooled_NC = self._sample.rows, torch.cat(self._pooled)
        del self._sample, self._pooled
        means, scales = ([getattr(self, f"{n}{stage}") for stage in range(len(channels))] for n in ("mean", "scale"))
        for scale in scales:  # one for a stage: a channel that hardly ever speaks is not to be heard as loud as others
            scale.fill_(scale.square().mean().sqrt())
        # Neighbourhoods and sizes are means with weights of sum 1, so a sample can be standardised afterwards.
        shift, scale = self.memory.places(means).flatten(), torch.cat([scale.flatten() for scale in scales])
        self.memory.learn((places_NC - shift) / scale)
        self.whole.learn(pooled_NC)

    def look(self, features: tuple[Tensor, ...]) -> None:
        self._sample.add(self.memory.places(features).flatten(0, 2))
        self._pooled.append(features[-1].mean(dim=(2, 3)))

    def _losses(self, clean: Encoded, corrupted: Encoded, mask_B1HW: Tensor, terms: list[str]) -> dict[str, Tensor]:
        raise ModelError("feature_memory has no losses: it is not trained by steps")

    def _maps(self, image: Encoded) -> dict[str, Tensor]:
        places_B1HW, finest = self.memory(self.standardised(image)), image[0].shape[-2:]
        stride = self.finest_stride
        size = [stride * side for side in finest]
        whole_B = self.whole(image[-1].mean(dim=(2, 3)))
        return {
            "memory": F.interpolate(places_B1HW, size, mode="bilinear"),
            IMAGE_SCORE: whole_B.view(-1, 1, 1, 1).expand(-1, 1, *size).contiguous(),
        }


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
