"""Features of twice the sides by bilinear interpolation: in training on a CPU by `enlarge.c`, else by torch.

Shapes: B images, C channels, H×W places.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from msad.models.kernels import kernel_check, native


def doubled(feature_BCHW: Tensor) -> Tensor:
    """Return B×C×2H×2W as `torch.nn.functional.interpolate` does with `mode="bilinear"`."""
    trained = torch.is_grad_enabled() and feature_BCHW.requires_grad
    if (
        trained
        and native.takes(feature_BCHW)
        and kernel_check.agrees("enlarging", _Doubled.apply, _by_torch, feature_BCHW)
    ):
        return _Doubled.apply(feature_BCHW)
    return _by_torch(feature_BCHW)


def _by_torch(feature_BCHW: Tensor) -> Tensor:
    return F.interpolate(feature_BCHW, scale_factor=2, mode="bilinear")


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, feature_BCHW: Tensor) -> Tensor:
        batch, channels, height, width = ctx.shape = feature_BCHW.shape
        made_BCHW = _empty(feature_BCHW, (batch, channels, 2 * height, 2 * width))
        _run("forward", feature_BCHW, made_BCHW, ctx.shape)
        return made_BCHW

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BCHW: Tensor) -> Tensor:
        back_BCHW = _empty(gradient_BCHW, ctx.shape)
        _run("backward", gradient_BCHW.contiguous(memory_format=torch.channels_last), back_BCHW, ctx.shape)
        return back_BCHW


def _empty(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, memory_format=torch.channels_last)


def _run(direction: str, given: Tensor, made: Tensor, shape: torch.Size) -> None:
    batch, channels, height, width = shape
    threads = torch.get_num_threads()
    scratch = torch.empty(threads, 2 * width * channels)
    sizes = batch, height, width, channels, threads
    native.call(native.of("enlarge", given), direction, given, made, scratch, *sizes)
