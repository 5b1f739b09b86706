"""A memory of what good images look like to a frozen network: nothing is trained, so a trial takes seconds.

The anomaly of a place is its distance from the nearest place that good images have shown, at several scales at once
(`msad.models.memory`, after PatchCore, Roth et al., arXiv 2106.08265, which says what differs). What good images may
look like is widened by augmented views of them: turned and mirrored where the good images themselves allow it, and in a
little other light. Long parts that lie at any angle are straightened first (`msad.models.pose`).

Tensors are named by shape: B images, C channels, H×W pixels or places, N places or images.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from msad.models.backbones import KNOWN_STRIDES, LITE0
from msad.models.base import Cached, Encoded, make_here
from msad.models.errors import ModelError, did_you_mean
from msad.models.frozen_features import FrozenFeatures
from msad.models.memory import CANDIDATES, Memory, Sample
from msad.models.pose import POSES, Pose
from msad.models.registry import register

MOST_ROWS = 100_000


@register("feature_memory")
class FeatureMemory(FrozenFeatures):
    """Distances from a bank of good features; no parameter is trained.

    The bank takes two bytes per number: with the defaults 24,000 × 472 × 2 = 22.7 MB of a bundle, beside 11.8 MB
    of the backbone.

    Its maps are always read the same way, `fixed_scoring`: to choose by synthetic defects did no better on any of four
    products (`benchmarks/README.md`).

    Parameters
    ----------
    backbone
        See `msad.models.backbones.load_backbone`; its weights become part of the model, so a bundle needs no download.
    finest_stride, coarsest_stride
        Pixels of a place of the finest and of the coarsest stage that is remembered, each one of 4, 8, 16, 32; the
        stages between are too. A place has the size of the finest: half the stride is four times the work.
    coarsest_share
        What the coarsest of several stages counts in a distance, above 0 and at most 1; each other counts 1. It sees
        most, and it blurs what is seen where.
    rows
        Places that are kept, chosen to cover all others, 1 to 100,000.
    neighbourhood
        Side, in places of a stage, of the square that a place is the mean of: 1, 3, 5, ...
    neighbours
        Nearest rows whose distances are averaged.
    light
        `levelled` or `kept`; see `msad.models.frozen_features.FrozenFeatures`.
    pose
        `straightened`: where the good images show one long part at any angle on an empty background, every image is
        turned to its part first (`msad.models.pose`); other images, and tiles, stay as they are. `kept`: all do.

    Raises
    ------
    ModelError
        A value is out of range or unknown, or the backbone can't be had.
    """

    loss_terms: ClassVar[tuple[str, ...]] = ()
    default_loss_weights: ClassVar[dict[str, float]] = {}
    training_defaults: ClassVar[dict[str, Any]] = {"epochs": 1, "evaluate_every": 1, "batch_size": 16}
    map_names: ClassVar[tuple[str, ...]] = ("memory",)

    def __init__(
        self,
        backbone: str = LITE0,
        finest_stride: int = 8,
        coarsest_stride: int = 32,
        coarsest_share: float = 0.5,
        rows: int = 24_000,
        neighbourhood: int = 3,
        neighbours: int = 1,
        light: str = "levelled",
        pose: str = "straightened",
    ) -> None:
        known = ", ".join(map(str, KNOWN_STRIDES))
        for name, value, allowed, rule in (
            ("finest_stride", finest_stride, finest_stride in KNOWN_STRIDES, f"one of {known}"),
            ("coarsest_stride", coarsest_stride, coarsest_stride in KNOWN_STRIDES, f"one of {known}"),
            ("coarsest_share", coarsest_share, _share(coarsest_share), "above 0 and at most 1"),
            ("rows", rows, _whole(rows) and 1 <= rows <= MOST_ROWS, f"a whole number from 1 to {MOST_ROWS}"),
            ("neighbourhood", neighbourhood, neighbourhood in range(1, 100, 2), "odd and at least 1"),
            ("neighbours", neighbours, _whole(neighbours) and 1 <= neighbours <= 100, "a whole number from 1 to 100"),
        ):
            if not allowed:
                raise ModelError(f"{name} is {value!r}; it must be {rule}")
        if finest_stride > coarsest_stride:
            raise ModelError(f"finest_stride {finest_stride} is above coarsest_stride {coarsest_stride}: swap them")
        if pose not in POSES:
            raise ModelError(f"pose is {pose!r}{did_you_mean(str(pose), POSES)}")
        strides = [stride for stride in KNOWN_STRIDES if finest_stride <= stride <= coarsest_stride]
        super().__init__(backbone, strides, light)
        shares = [1.0] * (len(strides) - 1) + [float(coarsest_share) if len(strides) > 1 else 1.0]
        self.memory = Memory(self.channels, rows, neighbourhood, neighbours, shares)
        self.pose = Pose(self.size_multiple) if pose == "straightened" else None

    def meet(self, good_NHWC: np.ndarray, cached: Cached = make_here) -> None:
        if self.pose is not None:
            self.pose.learn(good_NHWC, cached)

    def encode(self, image_BCHW: Tensor) -> Encoded:
        """Return the features of all stages, and behind them, where images are straightened, the way back."""
        if not self.straightens:
            return super().encode(image_BCHW)
        self.check_size(image_BCHW)
        cutout_BChw, back_B6HW = self.cut_out(image_BCHW)
        return (*super().encode(cutout_BChw), back_B6HW)

    def cut_out(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return straightened parts and the way back, see `msad.models.pose.Pose.straighten`."""
        with torch.no_grad(), torch.autocast(image_BCHW.device.type, enabled=False):
            return self.pose.straighten(image_BCHW.float())

    @property
    def fixed_scoring(self) -> dict[str, Any]:
        """The highest hundredth; in deviations from what is usual at a position, unless parts lie anywhere."""
        calibration = "none" if self.straightens else "position"
        return {"weights": {"memory": 1.0}, "smoothing": 4.0, "reduction": "top1", "calibration": calibration}

    @property
    def straightens(self) -> bool:
        """Whether parts are cut out, which the good images decide, see `meet`."""
        return self.pose is not None and self.pose.cutout is not None

    def begin(self) -> None:
        super().begin()
        self._sample, self._images = Sample(max(CANDIDATES, len(self.memory.bank_RC))), 0

    def update(self, features: tuple[Tensor, ...], inside_B1HW: Tensor | None) -> None:
        """Sample the places of good images, in bounded memory.

        Of straightened parts all are places: the region of interest is one of the photographs.
        """
        features = features[: len(self.channels)]
        inside_B1HW = None if self.straightens else inside_B1HW
        super().update(features, inside_B1HW)
        places_BHWC = self.memory.places(features)
        count, places_NC = len(places_BHWC), places_BHWC.flatten(0, 2)
        image_N = torch.arange(self._images, self._images + count).repeat_interleave(len(places_NC) // count)
        if inside_B1HW is not None:  # and their neighbours, which the map of the outermost pixels is made of too
            kept_N = (F.max_pool2d(inside_B1HW, 3, stride=1, padding=1) > 0).flatten()
            places_NC, image_N = places_NC[kept_N], image_N[kept_N.cpu()]
        self._sample.add(places_NC, image_N)
        self._images += count

    def finish(self) -> None:
        """Remember some of the places."""
        super().finish()
        for stage in range(len(self.channels)):
            # One for a stage: a channel that hardly ever speaks is not to be heard as loud as others.
            scale = getattr(self, f"scale{stage}")
            scale.fill_(scale.square().mean().sqrt())
        self._remember(self._sample.rows.float())

    @torch.no_grad()
    def without(self, left_out_N: np.ndarray, count: int) -> FeatureMemory:
        """Choose the rows among the sampled places of the other images; the stages' units stay those of all."""
        kept_N = ~torch.isin(self._sample.sources % count, torch.from_numpy(left_out_N))
        other = copy.deepcopy(self, {id(self._sample): self._sample})
        other._remember(self._sample.rows[kept_N.to(self.memory.bank_RC.device)].float())
        return other

    def _remember(self, places_NC: Tensor) -> None:
        """Keep some of the places, which are written over."""
        means, scales = (
            [getattr(self, f"{name}{stage}") for stage in range(len(self.channels))] for name in ("mean", "scale")
        )
        # Neighbourhoods and sizes are means with weights of sum 1, so a sample can be standardised afterwards.
        shift, scale = self.memory.places(means).flatten(), torch.cat([scale.flatten() for scale in scales])
        self.memory.learn(places_NC.sub_(shift).div_(scale))

    def _losses(self, clean: Encoded, corrupted: Encoded, mask_B1HW: Tensor, terms: list[str]) -> dict[str, Tensor]:
        raise ModelError("feature_memory has no losses: it is not trained by steps")

    def _maps(self, image: Encoded) -> dict[str, Tensor]:
        *features, back_B6HW = image if self.straightens else (*image, None)
        distance_B1hw = self.memory(self.standardised(features))
        size = [self.strides[0] * side for side in distance_B1hw.shape[-2:]]
        memory_B1HW = F.interpolate(distance_B1hw, size, mode="bilinear")
        if back_B6HW is not None:
            memory_B1HW = self.pose.put_back(memory_B1HW, back_B6HW)
        return {"memory": memory_B1HW}


def _share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
