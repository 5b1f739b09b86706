"""Max pooling of 2×2 places: in training by `max_pool.c` or on a GPU by Triton, which keep no indices, else by torch.

torch's operator writes an index of eight bytes beside each value of two, and going back clears the gradient before it
fills it: three times as slow on a CPU.

Shapes: B images, C channels, H×W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from models import gpu_kernels, max_pool_gpu, native


def max_pool(feature_BCHW: Tensor) -> Tensor:
    """Return the maxima, B×C×H/2×W/2, as `torch.nn.functional.max_pool2d` does."""
    height, width = feature_BCHW.shape[-2:]
    trained = torch.is_grad_enabled() and feature_BCHW.requires_grad
    if trained and height % 2 == width % 2 == 0 and _taken(feature_BCHW):
        return _MaxPool.apply(feature_BCHW)
    return F.max_pool2d(feature_BCHW, 2)


def _taken(feature_BCHW: Tensor) -> bool:
    return native.takes(feature_BCHW) or gpu_kernels.takes_interleaved(feature_BCHW)


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, feature_BCHW: Tensor) -> Tensor:
        batch, channels, height, width = feature_BCHW.shape
        made_BCHW = torch.empty(
            (batch, channels, height // 2, width // 2),
            dtype=feature_BCHW.dtype,
            device=feature_BCHW.device,
            memory_format=torch.channels_last,
        )
        _run("forward", feature_BCHW, made_BCHW)
        ctx.save_for_backward(feature_BCHW)
        return made_BCHW

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BCHW: Tensor) -> Tensor:
        (feature_BCHW,) = ctx.saved_tensors
        back_BCHW = torch.empty_like(feature_BCHW)
        _run("backward", feature_BCHW, gradient_BCHW.contiguous(memory_format=torch.channels_last), back_BCHW)
        return back_BCHW


def _run(direction: str, feature_BCHW: Tensor, *others: Tensor) -> None:
    if native.takes(feature_BCHW):
        batch, channels, height, width = feature_BCHW.shape
        sizes = batch * height, width, channels, torch.get_num_threads()
        native.call(native.of("max_pool", feature_BCHW), direction, feature_BCHW, *others, *sizes)
    else:
        max_pool_gpu.run(direction, feature_BCHW, *others)
