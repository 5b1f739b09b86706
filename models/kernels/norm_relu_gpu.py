"""The kernels of `msad.models.kernels.norm_relu` on a GPU, in Triton.

torch's kernels for features in bfloat16 with interleaved channels are three times slower than those for float16. Those
here read a feature twice and write it once going forward (statistics, then both steps); going back they read it and its
gradient twice and write once. Statistics are means and squared deviations of tiles, merged as in Chan, Golub, LeVeque,
"Algorithms for computing the sample variance", The American Statistician 37(3), 1983, so no digits are lost where a
mean is large.

Shapes: B images, C channels, H×W pixels; P programs of the device that share the M = B·H·W places.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # torch brings it on Linux only
    triton = None

_TILE = 4096  # elements that a program looks at together
_WIDEST = 64  # channels of them
_PROGRAMS = 1056  # that share a sum, at most: eight for each multiprocessor of an H100


def takes(device: torch.device, dtype: torch.dtype) -> bool:
    """Say whether there are kernels for features of this type there: in half precision, on the current GPU."""
    return (
        triton is not None
        and device.type == "cuda"
        and device.index == torch.cuda.current_device()
        and dtype in (torch.bfloat16, torch.float16)
    )


def trial_shapes(channels: int) -> list[tuple[int, int, int, int]]:
    """Return sizes for which all code is compiled and run that a feature of so many channels may need.

    Triton compiles anew where 16 divides the number of places; in large features programs go through several tiles.
    """
    side = math.isqrt(_PROGRAMS * _TILE * 5 // (4 * channels)) // 16 * 16 + 16
    return [(1, channels, side, side), (1, channels, 33, 31)]


def forward(
    feature_BCHW: Tensor,
    weight_C: Tensor,
    bias_C: Tensor,
    eps: float,
    made_BCHW: Tensor,
    mean_C: Tensor,
    variance_C: Tensor,
    scale_C: Tensor,
) -> None:
    """Fill the result and the channels' means, variances and 1 / deviations; see `norm_relu`."""
    places, channels, share, tiles, sizes = _layout(feature_BCHW)
    part_3PC = torch.empty(3, share[0], channels, device=feature_BCHW.device)
    _statistics[share](feature_BCHW, part_3PC, places, channels, **sizes)
    powers = triton.next_power_of_2(_PROGRAMS)  # the same for all sizes: compiled once
    _merged[(channels,)](part_3PC, mean_C, variance_C, scale_C, places, channels, share[0], eps, PROGRAMS=powers)
    _forward[tiles](feature_BCHW, made_BCHW, mean_C, scale_C, weight_C, bias_C, places, channels, **sizes)


def backward(
    feature_BCHW: Tensor,
    weight_C: Tensor,
    bias_C: Tensor,
    mean_C: Tensor,
    scale_C: Tensor,
    gradient_BCHW: Tensor,
    back_BCHW: Tensor,
    by_weight_C: Tensor,
    by_bias_C: Tensor,
) -> None:
    """Fill the gradients of the feature, the weight and the bias."""
    of_channels = mean_C, scale_C, weight_C, bias_C
    places, channels, share, tiles, sizes = _layout(feature_BCHW)
    part_2PC = torch.empty(2, share[0], channels, device=feature_BCHW.device)
    _sums[share](feature_BCHW, gradient_BCHW, *of_channels, part_2PC, places, channels, **sizes)
    for part_PC, sum_C in zip(part_2PC, (by_bias_C, by_weight_C), strict=True):
        torch.sum(part_PC, dim=0, out=sum_C)
    sums = by_bias_C, by_weight_C
    _backward[tiles](feature_BCHW, gradient_BCHW, back_BCHW, *of_channels, *sums, places, channels, **sizes)


def _layout(feature_BCHW: Tensor) -> tuple[int, int, tuple[int, int], tuple[int, int], dict[str, int]]:
    """Return places, channels, the programs of a sum and of a pass by rows and columns of tiles, and a tile's sides."""
    channels = feature_BCHW.shape[1]
    places = feature_BCHW.numel() // channels
    wide = min(triton.next_power_of_2(channels), _WIDEST)
    tall = _TILE // wide
    tiles = triton.cdiv(places, tall), triton.cdiv(channels, wide)
    share = min(tiles[0], max(1, _PROGRAMS // tiles[1])), tiles[1]
    return places, channels, share, tiles, {"TALL": tall, "WIDE": wide}


if triton is not None:

    @triton.jit
    def _tile(first, places, channels, TALL: tl.constexpr, WIDE: tl.constexpr):
        """Return where a tile's elements are, which of them exist, and its columns with the same."""
        rows = first + tl.arange(0, TALL)
        columns = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
        exists = (rows < places)[:, None] & (columns < channels)[None, :]
        return rows.to(tl.int64)[:, None] * channels + columns[None, :], exists, columns, columns < channels

    @triton.jit
    def _statistics(feature, part, places, channels, TALL: tl.constexpr, WIDE: tl.constexpr):
        """Write count, mean and squared deviations of every column of the tiles of a program."""
        program, programs = tl.program_id(0), tl.num_programs(0)
        count, mean, squares = (
            tl.zeros((WIDE,), tl.float32),
            tl.zeros((WIDE,), tl.float32),
            tl.zeros((WIDE,), tl.float32),
        )
        for first in range(program * TALL, places, programs * TALL):
            at, exists, _, _ = _tile(first, places, channels, TALL, WIDE)
            value = tl.load(feature + at, mask=exists, other=0.0).to(tl.float32)
            here = tl.minimum(places - first, TALL).to(tl.float32)
            tile_mean = tl.sum(value, axis=0) / here
            away = tl.where(exists, value - tile_mean[None, :], 0.0)
            apart, total = tile_mean - mean, count + here
            squares += tl.sum(away * away, axis=0) + apart * apart * count * here / total
            mean += apart * here / total
            count = total
        _, _, columns, known = _tile(0, places, channels, TALL, WIDE)
        at = part + program * channels + columns
        tl.store(at, count, mask=known)
        tl.store(at + programs * channels, mean, mask=known)
        tl.store(at + 2 * programs * channels, squares, mask=known)

    @triton.jit(do_not_specialize=["programs"])
    def _merged(
        part,
        mean_of,
        variance_of,
        scale_of,
        places,
        channels,
        programs,
        eps,
        PROGRAMS: tl.constexpr,
    ):
        """Merge what the programs wrote about a channel; write its mean, variance and 1 / deviation."""
        channel, program = tl.program_id(0), tl.arange(0, PROGRAMS)
        at, wrote = part + program * channels + channel, program < programs
        count = tl.load(at, mask=wrote, other=0.0)
        means = tl.load(at + programs * channels, mask=wrote, other=0.0)
        squares = tl.load(at + 2 * programs * channels, mask=wrote, other=0.0)
        mean = tl.sum(count * means, axis=0) / places
        apart = means - mean
        square = tl.sum(squares + count * apart * apart, axis=0)
        tl.store(mean_of + channel, mean)
        tl.store(variance_of + channel, square / tl.maximum(places - 1, 1))
        tl.store(scale_of + channel, 1 / tl.sqrt(square / places + eps))

    @triton.jit
    def _normalised(value, mean_of, scale_of, weight_of, bias_of, columns, known):
        """Return a tile normalised, and with the layer's weight and bias."""
        mean = tl.load(mean_of + columns, mask=known, other=0.0)[None, :]
        scale = tl.load(scale_of + columns, mask=known, other=0.0)[None, :]
        weight = tl.load(weight_of + columns, mask=known, other=0.0)[None, :]
        bias = tl.load(bias_of + columns, mask=known, other=0.0)[None, :]
        normal = (value.to(tl.float32) - mean) * scale
        return normal, normal * weight + bias

    @triton.jit
    def _forward(
        feature,
        made,
        mean_of,
        scale_of,
        weight_of,
        bias_of,
        places,
        channels,
        TALL: tl.constexpr,
        WIDE: tl.constexpr,
    ):
        at, exists, columns, known = _tile(tl.program_id(0) * TALL, places, channels, TALL, WIDE)
        value = tl.load(feature + at, mask=exists, other=0.0)
        _, out = _normalised(value, mean_of, scale_of, weight_of, bias_of, columns, known)
        tl.store(made + at, tl.maximum(out, 0.0).to(made.dtype.element_ty), mask=exists)

    @triton.jit
    def _sums(
        feature,
        gradient,
        mean_of,
        scale_of,
        weight_of,
        bias_of,
        part,
        places,
        channels,
        TALL: tl.constexpr,
        WIDE: tl.constexpr,
    ):
        """Write every column's sum of the gradient, and of its product with the normalised feature, over some tiles."""
        program, programs = tl.program_id(0), tl.num_programs(0)
        plain, weighted = tl.zeros((WIDE,), tl.float32), tl.zeros((WIDE,), tl.float32)
        for first in range(program * TALL, places, programs * TALL):
            at, exists, columns, known = _tile(first, places, channels, TALL, WIDE)
            value = tl.load(feature + at, mask=exists, other=0.0)
            back = tl.load(gradient + at, mask=exists, other=0.0).to(tl.float32)
            normal, out = _normalised(value, mean_of, scale_of, weight_of, bias_of, columns, known)
            back = tl.where(out > 0, back, 0.0)
            plain += tl.sum(back, axis=0)
            weighted += tl.sum(back * normal, axis=0)
        _, _, columns, known = _tile(0, places, channels, TALL, WIDE)
        at = part + program * channels + columns
        tl.store(at, plain, mask=known)
        tl.store(at + programs * channels, weighted, mask=known)

    @triton.jit
    def _backward(
        feature,
        gradient,
        made,
        mean_of,
        scale_of,
        weight_of,
        bias_of,
        plain_of,
        weighted_of,
        places,
        channels,
        TALL: tl.constexpr,
        WIDE: tl.constexpr,
    ):
        at, exists, columns, known = _tile(tl.program_id(0) * TALL, places, channels, TALL, WIDE)
        value = tl.load(feature + at, mask=exists, other=0.0)
        back = tl.load(gradient + at, mask=exists, other=0.0).to(tl.float32)
        normal, out = _normalised(value, mean_of, scale_of, weight_of, bias_of, columns, known)
        plain = tl.load(plain_of + columns, mask=known, other=0.0)[None, :]
        weighted = tl.load(weighted_of + columns, mask=known, other=0.0)[None, :]
        factor = tl.load(scale_of + columns, mask=known, other=0.0) * tl.load(
            weight_of + columns, mask=known, other=0.0
        )
        back = tl.where(out > 0, back, 0.0) - (plain + normal * weighted) / places
        tl.store(made + at, (back * factor[None, :]).to(made.dtype.element_ty), mask=exists)
