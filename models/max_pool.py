"""Max pooling of 2×2 places: on a CPU in training by `max_pool.c`, which keeps no indices, else by torch.

torch's operator writes an index of eight bytes beside each value of two, and going back clears the gradient before it
fills it: three times as slow.

Shapes: B images, C channels, H×W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from models import native


def max_pool(feature_BCHW: Tensor) -> Tensor:
    """Return the maxima, B×C×H/2×W/2, as `torch.nn.functional.max_pool2d` does."""
    height, width = feature_BCHW.shape[-2:]
    trained = torch.is_grad_enabled() and feature_BCHW.requires_grad
    if trained and height % 2 == width % 2 == 0 and native.takes(feature_BCHW):
        return _MaxPool.apply(feature_BCHW)
    return F.max_pool2d(feature_BCHW, 2)


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, feature_BCHW: Tensor) -> Tensor:
        batch, channels, height, width = feature_BCHW.shape
        made_BCHW = torch.empty(
            (batch, channels, height // 2, width // 2), dtype=feature_BCHW.dtype, memory_format=torch.channels_last
        )
        sizes = batch * height, width, channels, torch.get_num_threads()
        native.call(native.of("max_pool", feature_BCHW), "forward", feature_BCHW, made_BCHW, *sizes)
        ctx.save_for_backward(feature_BCHW)
        return made_BCHW

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BCHW: Tensor) -> Tensor:
        (feature_BCHW,) = ctx.saved_tensors
        batch, channels, height, width = feature_BCHW.shape
        gradient_BCHW = gradient_BCHW.contiguous(memory_format=torch.channels_last)
        back_BCHW = torch.empty_like(feature_BCHW)
        sizes = batch * height, width, channels, torch.get_num_threads()
        native.call(native.of("max_pool", feature_BCHW), "backward", feature_BCHW, gradient_BCHW, back_BCHW, *sizes)
        return back_BCHW
