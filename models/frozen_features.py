"""What every architecture on a frozen network shares: encoding, and each channel's mean and deviation on good images.

Tensors are named by shape: B images, C channels, H×W places of a stage.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from msad.models.backbones import STRIDES, load_backbone, terms
from msad.models.base import AnomalyModel, Encoded
from msad.models.errors import ModelError, did_you_mean
from msad.models.roi import Roi

LIGHTS = ("kept", "levelled")

_TINY = 1e-3
_LEVEL = 0.5  # the mean grey that images are brought to, in [0, 1]
_DARKEST = 0.05  # a darker image counts as this dark: nothing can be brought back from the black


class FrozenEncoder(AnomalyModel):
    """An architecture that sees images through a frozen backbone, whose features `encode` gives, finest stage first.

    Parameters
    ----------
    backbone, strides
        See `msad.models.backbones.load_backbone`; the weights become part of the model, so a bundle needs no download.
    light
        `levelled`: every image, or tile, is multiplied so that its mean grey is the same, before the backbone sees it.
        How bright the lamp was then says nothing; nor does how bright the whole product is. Of a region of interest it
        is the mean inside. `kept`: as it is.

    Raises
    ------
    ModelError
        The backbone can't be had, or the light is unknown.
    """

    has_frozen_encoder: ClassVar[bool] = True

    def __init__(self, backbone: str, strides: Sequence[int] = STRIDES, light: str = "kept") -> None:
        super().__init__()
        if light not in LIGHTS:
            raise ModelError(f"light is {light!r}{did_you_mean(str(light), LIGHTS)}")
        self.light = light
        self.backbone = load_backbone(backbone, strides)
        self.pretrained = {backbone: terms(backbone)}
        self.channels, self.strides = self.backbone.channels, self.backbone.strides
        self.size_multiple = self.strides[-1]

    def encode(self, image_BCHW: Tensor) -> Encoded:
        self.check_size(image_BCHW)
        with torch.no_grad(), torch.autocast(image_BCHW.device.type, enabled=False):
            image_BCHW = image_BCHW.float()
            if self.light == "levelled":
                image_BCHW = levelled(image_BCHW, self.roi)
            return self.backbone(image_BCHW)

    def adapt(self, clean: Iterable[Encoded]) -> None:
        """Look at all good training images: `begin`, then `update` with each batch, then `finish`."""
        self.adapt_inside(clean, None)

    @torch.no_grad()
    def adapt_inside(self, clean: Iterable[Encoded], inside: Iterable[Tensor] | None) -> None:
        self.begin()
        for features, inside_B1HW in zip(clean, inside or itertools.repeat(None), strict=inside is not None):
            self.update(features, inside_B1HW)
        self.finish()

    @abstractmethod
    def begin(self) -> None:
        """Prepare for batches of good features."""

    @abstractmethod
    def update(self, features: tuple[Tensor, ...], inside_B1HW: Tensor | None) -> None:
        """Take one batch of good features."""

    @abstractmethod
    def finish(self) -> None:
        """Learn from what was seen."""


class FrozenFeatures(FrozenEncoder):
    """A `FrozenEncoder` that knows each channel's mean and deviation on good images."""

    def __init__(self, backbone: str, strides: Sequence[int] = STRIDES, light: str = "kept") -> None:
        super().__init__(backbone, strides, light)
        for stage, count in enumerate(self.channels):
            self.register_buffer(f"mean{stage}", torch.zeros(1, count, 1, 1))
            self.register_buffer(f"scale{stage}", torch.ones(1, count, 1, 1))

    def begin(self) -> None:
        self._moments = [_Moments() for _ in self.channels]

    def update(self, features: tuple[Tensor, ...], inside_B1HW: Tensor | None) -> None:
        for of_stage, f in zip(self._moments, features, strict=True):
            of_stage.add(f, inside_B1HW)

    def finish(self) -> None:
        if not self._moments[0].images:
            raise ModelError("no training image shows the region of interest: make it larger, or the tiles")
        for stage, of_stage in enumerate(self._moments):
            mean, deviation = of_stage.mean_and_deviation()
            getattr(self, f"mean{stage}").copy_(mean.view(1, -1, 1, 1))
            getattr(self, f"scale{stage}").copy_(deviation.view(1, -1, 1, 1) + _TINY)
        del self._moments

    def standardised(self, features: Encoded) -> tuple[Tensor, ...]:
        """Express every channel in deviations from its mean, so that all count alike."""
        return tuple(
            (f - getattr(self, f"mean{stage}")) / getattr(self, f"scale{stage}") for stage, f in enumerate(features)
        )


class _Moments:
    """Mean and deviation of each channel over the places of many images, or over those inside of a region alone."""

    def __init__(self) -> None:
        self.images, self._first, self._second = 0, 0.0, 0.0

    def add(self, feature_BCHW: Tensor, inside_B1HW: Tensor | None) -> None:
        # Means over places first: sums of squares over a whole category would lose digits.
        feature_BCHW = feature_BCHW.double()
        if inside_B1HW is None:
            self.images += len(feature_BCHW)
            means = (values.mean(dim=(2, 3)) for values in (feature_BCHW, feature_BCHW.square()))
        else:
            share_B1HW = F.adaptive_avg_pool2d(inside_B1HW, feature_BCHW.shape[-2:]).double()
            whole_B1 = share_B1HW.sum(dim=(2, 3))
            self.images += int((whole_B1 > 0).sum())
            sums = ((values * share_B1HW).sum(dim=(2, 3)) for values in (feature_BCHW, feature_BCHW.square()))
            means = (total_BC / whole_B1.clamp(min=_TINY) for total_BC in sums)
        first_BC, second_BC = means
        self._first, self._second = self._first + first_BC.sum(dim=0), self._second + second_BC.sum(dim=0)

    def mean_and_deviation(self) -> tuple[Tensor, Tensor]:
        mean_C = self._first / self.images
        return mean_C, (self._second / self.images - mean_C**2).clamp(min=0).sqrt()


def levelled(image_BCHW: Tensor, roi: Roi | None = None) -> Tensor:
    """Multiply each image so that its mean is `_LEVEL`; nothing is clipped, so values may exceed 1.

    The mean of a whole image is that of its region of interest; tiles and cut-outs have none.
    """
    if roi is not None and roi.inside_1HW.shape[-2:] == image_BCHW.shape[-2:]:
        mean_B111 = roi.pixels(image_BCHW.mean(dim=1, keepdim=True)).mean(dim=1).view(-1, 1, 1, 1)
    else:
        mean_B111 = image_BCHW.mean(dim=(1, 2, 3), keepdim=True)
    return image_BCHW * (_LEVEL / mean_B111.clamp(min=_DARKEST))
