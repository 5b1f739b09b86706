"""Max pooling of 2×2 places: in training by `max_pool.c` or on a GPU by Triton, which keep no indices, else by torch.

torch's operator writes an index of eight bytes beside each value of two, and going back clears the gradient before it
fills it: three times as slow on a CPU.

Shapes: B images, C channels, H×W pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from msad.models.kernels import gpu_kernels, kernel_check, max_pool_gpu, native


def max_pool(feature_BCHW: Tensor) -> Tensor:
    """Return the maxima, B×C×H/2×W/2, as `torch.nn.functional.max_pool2d` does."""
    height, width = feature_BCHW.shape[-2:]
    trained = torch.is_grad_enabled() and feature_BCHW.requires_grad
    if trained and height % 2 == width % 2 == 0:
        for takes, run in ((native.takes, _run), (gpu_kernels.takes_interleaved, max_pool_gpu.run)):
            ours = functools.partial(_MaxPool.apply, run)
            if takes(feature_BCHW) and kernel_check.agrees("max pooling", ours, _by_torch, feature_BCHW):
                return ours(feature_BCHW)
    return _by_torch(feature_BCHW)


def _by_torch(feature_BCHW: Tensor) -> Tensor:
    return F.max_pool2d(feature_BCHW, 2)


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Callable[..., None], feature_BCHW: Tensor) -> Tensor:
        batch, channels, height, width = feature_BCHW.shape
        made_BCHW = torch.empty(
            (batch, channels, height // 2, width // 2),
            dtype=feature_BCHW.dtype,
            device=feature_BCHW.device,
            memory_format=torch.channels_last,
        )
        run("forward", feature_BCHW, made_BCHW)
        ctx.run = run
        ctx.save_for_backward(feature_BCHW)
        return made_BCHW

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BCHW: Tensor) -> tuple[Tensor | None, ...]:
        (feature_BCHW,) = ctx.saved_tensors
        back_BCHW = torch.empty_like(feature_BCHW)
        ctx.run("backward", feature_BCHW, gradient_BCHW.contiguous(memory_format=torch.channels_last), back_BCHW)
        return None, back_BCHW


def _run(direction: str, feature_BCHW: Tensor, *others: Tensor) -> None:
    """As `max_pool_gpu.run`, on a CPU."""
    batch, channels, height, width = feature_BCHW.shape
    sizes = batch * height, width, channels, torch.get_num_threads()
    native.call(native.of("max_pool", feature_BCHW), direction, feature_BCHW, *others, *sizes)
