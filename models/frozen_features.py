"""What every architecture on a frozen network shares: encoding, and each channel's mean and deviation on good images.

Tensors are named by shape: B images, C channels, H×W places of a stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from msad.models.backbones import STRIDES, load_backbone, terms
from msad.models.base import AnomalyModel, Encoded
from msad.models.errors import ModelError, did_you_mean

LIGHTS = ("kept", "levelled")

_TINY = 1e-3
_LEVEL = 0.5  # the mean grey that images are brought to, in [0, 1]
_DARKEST = 0.05  # a darker image counts as this dark: nothing can be brought back from the black


class FrozenFeatures(AnomalyModel):
    """An architecture that works on the features of a frozen backbone, which `encode` gives, finest stage first.

    Parameters
    ----------
    backbone, strides
        See `msad.models.backbones.load_backbone`; the weights become part of the model, so a bundle needs no download.
    light
        `levelled`: every image, or tile, is multiplied so that its mean grey is the same, before the backbone sees it.
        How bright the lamp was then says nothing; nor does how bright the whole product is. `kept`: as it is.

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
        self.size_multiple = self.backbone.strides[-1]
        for stage, count in enumerate(self.backbone.channels):
            self.register_buffer(f"mean{stage}", torch.zeros(1, count, 1, 1))
            self.register_buffer(f"scale{stage}", torch.ones(1, count, 1, 1))

    def encode(self, image_BCHW: Tensor) -> Encoded:
        self.check_size(image_BCHW)
        with torch.no_grad(), torch.autocast(image_BCHW.device.type, enabled=False):
            image_BCHW = image_BCHW.float()
            return self.backbone(levelled(image_BCHW) if self.light == "levelled" else image_BCHW)

    @torch.no_grad()
    def adapt(self, clean: Iterable[Encoded]) -> None:
        """Measure each channel's mean and deviation."""
        count, sums, squares = 0, None, None
        for features in clean:
            self.look(features)
            # Means over places first: sums of squares over a whole category would lose digits.
            first = [f.double().mean(dim=(2, 3)).sum(dim=0) for f in features]
            second = [f.double().square().mean(dim=(2, 3)).sum(dim=0) for f in features]
            sums = first if sums is None else [a + b for a, b in zip(sums, first, strict=True)]
            squares = second if squares is None else [a + b for a, b in zip(squares, second, strict=True)]
            count += len(features[0])
        for stage, (total, square) in enumerate(zip(sums, squares, strict=True)):
            mean = total / count
            deviation = (square / count - mean**2).clamp(min=0).sqrt() + _TINY
            getattr(self, f"mean{stage}").copy_(mean.view(1, -1, 1, 1))
            getattr(self, f"scale{stage}").copy_(deviation.view(1, -1, 1, 1))

    def look(self, features: tuple[Tensor, ...]) -> None:
        """See one batch of good features on the way of `adapt`: what else a model wants to know of them."""

    def standardised(self, features: Encoded) -> tuple[Tensor, ...]:
        """Express every channel in deviations from its mean, so that all count alike."""
        return tuple(
            (f - getattr(self, f"mean{stage}")) / getattr(self, f"scale{stage}") for stage, f in enumerate(features)
        )


def levelled(image_BCHW: Tensor) -> Tensor:
    """Multiply each image so that its mean is `_LEVEL`; nothing is clipped, so values may exceed 1."""
    mean_B111 = image_BCHW.mean(dim=(1, 2, 3), keepdim=True)
    return image_BCHW * (_LEVEL / mean_B111.clamp(min=_DARKEST))
