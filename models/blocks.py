"""The parts that the convolutional architectures share: double convolutions, skip joins, an encoder-decoder of them.

Tensors are named by shape: B images, C channels, H×W pixels.

U-Net: Ronneberger, Fischer, Brox, arXiv 1505.04597; here with padding, batch normalisation and a free bottleneck width.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msad.models.errors import ModelError, did_you_mean
from msad.models.kernels.norm_relu import NormReLU

SKIPS = ("concat", "add", "gated", "none")
NORMS = ("batch", "group")


class DoubleConv(nn.Sequential):
    """Twice a 3×3 convolution, a normalisation and a ReLU; keeps H and W.

    Batch normalisation takes a channel's mean away, and with it any bias before it: there is none, which saves a pass
    over the features forward and one backward.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: str = "batch") -> None:
        bias = norm != "batch"
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias),
            _norm_relu(norm, out_channels),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=bias),
            _norm_relu(norm, out_channels),
        )


class Join(nn.Module):
    """How a decoder level takes in the encoder's features of the same size.

    `concat` stacks both, `add` sums them, `none` drops the skip, and `gated` mixes them by a learned convex combination
    per channel and pixel, `g * skip + (1 - g) * decoder`, with `g` computed from both. Unlike the attention gates of
    Oktay et al. (arXiv 1804.03999), which only scale the skip, a closed gate leaves the decoder's own features whole,
    as in highway networks (Srivastava et al., arXiv 1505.00387), whose start with nearly closed gates is taken too: a
    defect gets through a skip only where training found that it pays.
    """

    def __init__(self, mode: str, channels: int, dropout: float) -> None:
        super().__init__()
        self.mode = mode
        self.out_channels = channels * 2 if mode == "concat" else channels
        self.dropout = nn.Dropout2d(dropout)
        if mode == "gated":
            self.gate = nn.Conv2d(channels * 2, channels, 1)
            nn.init.constant_(self.gate.bias, -2.0)  # sigmoid(-2) = 0.12

    def forward(self, decoder_BCHW: Tensor, skip_BCHW: Tensor) -> Tensor:
        if self.mode == "none":
            return decoder_BCHW
        skip_BCHW = self.dropout(skip_BCHW)
        if self.mode == "add":
            return decoder_BCHW + skip_BCHW
        both_BCHW = torch.cat([skip_BCHW, decoder_BCHW], dim=1)
        if self.mode == "concat":
            return both_BCHW
        return gated(decoder_BCHW, skip_BCHW, self.gate(both_BCHW))


def gated(decoder_BCHW: Tensor, skip_BCHW: Tensor, gate_BCHW: Tensor) -> Tensor:
    """Return `g * skip + (1 - g) * decoder` with `g = sigmoid(gate)`, B×C×H×W."""
    given = decoder_BCHW, skip_BCHW, gate_BCHW
    if len(kinds := {feature_BCHW.dtype for feature_BCHW in given}) > 1:  # autocast's doing; `lerp` wants them alike
        kind = functools.reduce(torch.promote_types, kinds)
        given = tuple(feature_BCHW.to(kind) for feature_BCHW in given)
    decoder_BCHW, skip_BCHW, gate_BCHW = given
    return torch.lerp(decoder_BCHW, skip_BCHW, torch.sigmoid(gate_BCHW))


class EncoderDecoder(nn.Module):
    """`depth` levels down by 2×2 max pooling, a bottleneck, and as many up by 2×2 transposed convolutions.

    Parameters
    ----------
    in_channels, out_channels
        Of the images that go in and of the maps that come out (no activation at the end).
    base_width
        Channels at full resolution; they double with each level.
    depth
        Levels; the sides of an image must be divisible by `2 ** depth`.
    bottleneck_channels
        Channels at the lowest resolution; None continues the doubling.
    skip
        One of `SKIPS`; see `Join`.
    skip_dropout
        Chance in [0, 1) that a channel of a skip is dropped in a training step.
    first_skip
        Levels above this one (0 is full resolution) get no skip: the shallowest skips copy defects best.
    norm
        `batch`, or `group` (8 groups where the width allows; independent of the batch).

    Raises
    ------
    ModelError
        A value is out of range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        base_width: int,
        depth: int,
        bottleneck_channels: int | None,
        skip: str,
        skip_dropout: float,
        first_skip: int,
        norm: str,
    ) -> None:
        super().__init__()
        for name, value in (("base_width", base_width), ("depth", depth), ("bottleneck_channels", bottleneck_channels)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ModelError(f"{name} is {value!r}; it must be a whole number of at least 1")
        for name, value, known in (("skip", skip, SKIPS), ("norm", norm, NORMS)):
            if value not in known:
                raise ModelError(f"{name} is {value!r}{did_you_mean(str(value), known)}")
        if not 0 <= skip_dropout < 1:
            raise ModelError(f"skip_dropout is {skip_dropout!r}; it must be at least 0 and below 1")
        if not isinstance(first_skip, int) or first_skip < 0:
            raise ModelError(
                f"first_skip is {first_skip!r}; it must be a level: 0 for full resolution, 1 for half, ..."
            )
        widths = [base_width * 2**level for level in range(depth)]
        self.encoder = nn.ModuleList(
            DoubleConv(before, width, norm) for before, width in zip([in_channels, *widths], widths, strict=False)
        )
        below = bottleneck_channels or base_width * 2**depth
        self.bottleneck = DoubleConv(widths[-1], below, norm)
        self.up, self.join, self.decoder = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            self.up.append(nn.ConvTranspose2d(below, width, 2, stride=2))
            self.join.append(Join(skip if level >= first_skip else "none", width, skip_dropout))
            self.decoder.append(DoubleConv(self.join[-1].out_channels, width, norm))
            below = width
        self.head = nn.Conv2d(base_width, out_channels, 1)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        features_BCHW, skips = image_BCHW, []
        for encode in self.encoder:
            skips.append(encode(features_BCHW))
            features_BCHW = F.max_pool2d(skips[-1], 2)
        features_BCHW = self.bottleneck(features_BCHW)
        for up, join, decode in zip(self.up, self.join, self.decoder, strict=True):
            features_BCHW = decode(join(up(features_BCHW), skips.pop()))
        return self.head(features_BCHW)


def _norm_relu(kind: str, channels: int) -> nn.Module:
    if kind == "batch":
        return NormReLU(channels)
    return nn.Sequential(_GroupNorm(math.gcd(channels, 8), channels), nn.ReLU(inplace=True))


class _GroupNorm(nn.GroupNorm):
    """Returns the precision that it was given, as batch normalisation does.

    Under autocast a GPU's returns float32 instead: all that follows would take twice the memory, and operators that do
    not promote, `lerp` among them, would meet a skip and a decoder of two types.
    """

    def forward(self, feature_BCHW: Tensor) -> Tensor:
        return super().forward(feature_BCHW).to(feature_BCHW.dtype)
