"""A multi-scale autoencoder in the feature space of a frozen network, and a head that marks what it could not restore.

The features of three stages (strides 4, 8, 16) are merged at the coarsest one, squeezed through a narrow bottleneck and
decoded back to every stage: reverse distillation (Deng and Li, RD4AD, arXiv 2201.10703) with the encoder's statistics
standardised per channel and a decoder small enough for a CPU. Trained from the features of corrupted images to those of
the clean ones, with dropout in the bottleneck as in Dinomaly (Guo et al., arXiv 2405.14325). The head predicts the
corruption's mask from the features and from what is left of them after reconstruction, after DeSTSeg (Zhang et al.,
arXiv 2211.11317), whose head sees the likeness of two networks only.

Tensors are named by shape: B images, C channels, H×W pixels or places of a stage.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msad.models.backbones import LITE0
from msad.models.base import Encoded
from msad.models.errors import ModelError
from msad.models.frozen_features import FrozenFeatures
from msad.models.kernels.enlarge import doubled
from msad.models.kernels.feature_distance import cosine_distance, feature_distances
from msad.models.kernels.norm_relu import NormReLU
from msad.models.registry import register
from msad.models.segmentation import dice_loss, evidence, focal_loss, start_rare

_MASK_LOSSES = {"focal": focal_loss, "dice": dice_loss}


@register("feature_pyramid")
class FeaturePyramid(FrozenFeatures):
    """Autoencoder of frozen features; 1,529,257 parameters of its own with the defaults, and 700,768 frozen ones.

    Parameters
    ----------
    backbone
        See `msad.models.backbones.load_backbone`; its weights become part of the model, so a bundle needs no download.
    width
        Channels of the decoder at stride 16; half of it at stride 8, a quarter at stride 4.
    bottleneck_channels
        Numbers per place (16×16 pixels) that everything has to pass.
    dropout
        Share of those numbers dropped in a training step, in [0, 1).
    light
        `levelled` or `kept`; see `msad.models.frozen_features.FrozenFeatures`.

    Raises
    ------
    ModelError
        A value is out of range, or the backbone can't be had.
    """

    loss_terms: ClassVar[tuple[str, ...]] = ("cosine", "squared", "focal", "dice")
    default_loss_weights: ClassVar[dict[str, float]] = {"cosine": 1.0, "squared": 1.0, "focal": 10.0, "dice": 1.0}
    training_defaults: ClassVar[dict[str, Any]] = {
        "epochs": 50,
        "evaluate_every": 10,
        "learning_rate": 2e-3,
        "batch_size": 16,
        "weight_decay": 1e-4,
    }
    map_names: ClassVar[tuple[str, ...]] = ("cosine", "squared", "mask")

    def __init__(
        self,
        backbone: str = LITE0,
        width: int = 192,
        bottleneck_channels: int = 48,
        dropout: float = 0.1,
        light: str = "levelled",
    ) -> None:
        for name, value, allowed, rule in (
            ("width", width, isinstance(width, int) and width >= 4 and width % 4 == 0, "a multiple of 4"),
            ("bottleneck_channels", bottleneck_channels, bottleneck_channels >= 1, "at least 1"),
            ("dropout", dropout, 0 <= dropout < 1, "at least 0 and below 1"),
        ):
            if not allowed:
                raise ModelError(f"{name} is {value!r}; it must be {rule}")
        super().__init__(backbone, light=light)
        channels, strides = self.channels, self.strides
        widths = [width * stride // strides[-1] for stride in strides]
        self.gather = nn.ModuleList(
            _gather(c, strides[-1] // s, width // 2) for c, s in zip(channels, strides, strict=True)
        )
        self.squeeze = nn.Sequential(
            _conv(width // 2 * len(strides), width, 3), nn.Conv2d(width, bottleneck_channels, 1), nn.Dropout(dropout)
        )
        self.restore = nn.Sequential(_conv(bottleneck_channels, width, 1), _conv(width, width, 3))
        self.decode = nn.ModuleList(_Rise(w, w2) for w, w2 in zip([*widths[1:], width], widths, strict=True))
        self.heads = nn.ModuleList(nn.Conv2d(w, c, 1) for w, c in zip(widths, channels, strict=True))
        marks = [w // 2 for w in widths]
        self.compare = nn.ModuleList(_conv(2 * c, m, 1) for c, m in zip(channels, marks, strict=True))
        self.mark = nn.ModuleList(_Rise(m, m2, m2) for m, m2 in zip(marks[1:], marks[:-1], strict=True))
        self.marked = nn.Conv2d(marks[0], 1, 1)
        start_rare(self.marked)

    def forward(self, features: tuple[Tensor, ...]) -> tuple[list[Tensor], Tensor]:
        """Restore standardised features; and give the log odds B×1×H/4×W/4 that a place is not as it should be."""
        gathered_BCHW = torch.cat([gather(f) for gather, f in zip(self.gather, features, strict=True)], dim=1)
        level_BCHW, made = self.restore(self.squeeze(gathered_BCHW)), []
        for decode, head, f in reversed(list(zip(self.decode, self.heads, features, strict=True))):
            level_BCHW = decode(level_BCHW, f.shape[-2:])
            made.insert(0, head(level_BCHW))
        # In the precision of what was made, bfloat16 in training: what is left of a feature is no more precise anyway.
        seen = [f.to(m.dtype) for f, m in zip(features, made, strict=True)]
        compared = [
            compare(torch.cat([f, f - m], dim=1)) for compare, f, m in zip(self.compare, seen, made, strict=True)
        ]
        mark_BCHW = compared[-1]
        for rise, beside_BCHW in reversed(list(zip(self.mark, compared[:-1], strict=True))):
            mark_BCHW = rise(mark_BCHW, beside_BCHW.shape[-2:], beside_BCHW)
        return made, self.marked(mark_BCHW)

    def _losses(self, clean: Encoded, corrupted: Encoded, mask_B1HW: Tensor, terms: list[str]) -> dict[str, Tensor]:
        made, logit_B1HW = self(self.standardised(corrupted))
        values: dict[str, Tensor] = {}
        if not {"cosine", "squared"}.isdisjoint(terms):
            wanted = self.standardised(clean)
            distances = [feature_distances(m, w) for m, w in zip(made, wanted, strict=True)]
            values["cosine"], values["squared"] = (
                torch.stack(stages).mean() for stages in zip(*distances, strict=True)
            )
        share_B1HW = F.adaptive_avg_pool2d(mask_B1HW.float(), logit_B1HW.shape[-2:])
        values |= {term: loss(logit_B1HW, share_B1HW) for term, loss in _MASK_LOSSES.items() if term in terms}
        return {term: values[term] for term in terms}

    def _maps(self, image: Encoded) -> dict[str, Tensor]:
        features = self.standardised(image)
        made, logit_B1HW = self(features)
        pairs, finest = list(zip(made, features, strict=True)), features[0].shape[-2:]
        maps = {
            "cosine": _fused([cosine_distance(m, f) for m, f in pairs], finest),
            "squared": _fused([(m - f).square().mean(dim=1, keepdim=True) for m, f in pairs], finest),
            "mask": evidence(logit_B1HW),
        }
        return {
            name: _resized(map_B1HW, [self.strides[0] * side for side in finest]) for name, map_B1HW in maps.items()
        }


class _Rise(nn.Module):
    """One level up: fewer channels, the next finer size, what lies beside it joined, and a 3×3 convolution."""

    def __init__(self, in_channels: int, out_channels: int, beside_channels: int = 0) -> None:
        super().__init__()
        self.narrow = nn.Identity() if in_channels == out_channels else _conv(in_channels, out_channels, 1)
        self.mix = _conv(out_channels + beside_channels, out_channels, 3)

    def forward(self, level_BCHW: Tensor, size: torch.Size, beside_BCHW: Tensor | None = None) -> Tensor:
        level_BCHW = _resized(self.narrow(level_BCHW), size)
        if beside_BCHW is not None:
            level_BCHW = torch.cat([level_BCHW, beside_BCHW], dim=1)
        return self.mix(level_BCHW)


def _gather(channels: int, times: int, width: int) -> nn.Sequential:
    """From a stage to one that is so many times as coarse: the channels double where the sides halve."""
    steps: list[nn.Module] = []
    while times > 1:
        steps.append(_conv(channels, 2 * channels, 3, stride=2))
        channels, times = 2 * channels, times // 2
    return nn.Sequential(*steps, _conv(channels, width, 1))


def _conv(in_channels: int, out_channels: int, side: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, side, stride, side // 2, bias=False),
        NormReLU(out_channels),
    )


def _fused(maps: list[Tensor], size: torch.Size) -> Tensor:
    """Average the maps of all stages at the finest one's size."""
    return torch.stack([_resized(map_B1HW, size) for map_B1HW in maps]).mean(dim=0)


def _resized(image_BCHW: Tensor, size: torch.Size | list[int]) -> Tensor:
    height, width = image_BCHW.shape[-2:]
    if list(size) == [height, width]:
        return image_BCHW
    if list(size) == [2 * height, 2 * width]:
        return doubled(image_BCHW)
    return F.interpolate(image_BCHW, tuple(size), mode="bilinear")
