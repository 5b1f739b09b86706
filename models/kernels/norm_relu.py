"""Batch normalisation and a ReLU as one layer: as torch computes them, in training with half of the memory traffic.

The ReLU's mask is computed again going back instead of kept. `norm_relu_gpu` and `norm_relu_cpu` hold the kernels;
where neither suits, the layer is torch's own two.

Shapes: B images, C channels, H×W pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msad.models.kernels import kernel_check, norm_relu_cpu, norm_relu_gpu


class NormReLU(nn.Module):
    """`nn.BatchNorm2d` with a ReLU after it; the same results up to rounding, wherever they are computed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, feature_BCHW: Tensor) -> Tensor:
        norm = self.norm
        kernels = _kernels(feature_BCHW, norm) if self.training else None
        if kernels is None or not _proven(kernels, feature_BCHW, norm):
            return F.relu(norm(feature_BCHW), inplace=True)
        norm.num_batches_tracked.add_(1)
        running = norm.running_mean, norm.running_var
        return _Fused.apply(kernels, feature_BCHW, norm.weight, norm.bias, *running, norm.momentum, norm.eps)


def _kernels(feature_BCHW: Tensor, norm: nn.Module) -> ModuleType | None:
    """Return the kernels that take this feature, if any; none synchronises its statistics with other processes."""
    if type(norm) is not nn.BatchNorm2d or norm.weight.dtype != torch.float32:
        return None
    return next((kernels for kernels in (norm_relu_gpu, norm_relu_cpu) if kernels.takes(feature_BCHW)), None)


def _proven(kernels: ModuleType, feature_BCHW: Tensor, norm: nn.BatchNorm2d) -> bool:
    tried = getattr(kernels, "AS_IN_LARGE_ONES", kernels)

    def run(function: Callable[..., Tensor], feature_BCHW: Tensor, weight_C: Tensor, bias_C: Tensor) -> tuple:
        mean_C, variance_C = torch.zeros_like(weight_C).detach(), torch.ones_like(weight_C).detach()
        # A small bias leaves all of them as far from 0, where a ReLU's gradient jumps, as the proof draws them.
        made_BCHW = function(feature_BCHW, weight_C, bias_C / 10, mean_C, variance_C, norm.momentum, norm.eps)
        return made_BCHW, mean_C, variance_C

    def torchs(feature_BCHW: Tensor, weight_C: Tensor, bias_C: Tensor, *running: Tensor | float) -> Tensor:
        mean_C, variance_C, momentum, eps = running
        normal_BCHW = F.batch_norm(feature_BCHW, mean_C, variance_C, weight_C, bias_C, True, momentum, eps)
        return F.relu(normal_BCHW)

    both = (functools.partial(run, function) for function in (functools.partial(_Fused.apply, tried), torchs))
    return kernel_check.agrees("batch normalisation and ReLU", *both, feature_BCHW, norm.weight, norm.bias)


class _Fused(torch.autograd.Function):
    """The layer in training; the running statistics are updated in place."""

    @staticmethod
    def forward(
        ctx: Any,
        kernels: ModuleType,
        feature_BCHW: Tensor,
        weight_C: Tensor,
        bias_C: Tensor,
        *running: Tensor | float,
    ) -> Tensor:
        made_BCHW, mean_C, scale_C = kernels.forward(feature_BCHW, weight_C, bias_C, *running)
        ctx.kernels = kernels
        ctx.save_for_backward(feature_BCHW, mean_C, scale_C, weight_C, bias_C)
        return made_BCHW

    @staticmethod
    def backward(ctx: Any, gradient_BCHW: Tensor) -> tuple[Tensor | None, ...]:
        feature_BCHW, *of_channels = ctx.saved_tensors
        gradient_BCHW = gradient_BCHW.contiguous(memory_format=torch.channels_last)
        return None, *ctx.kernels.backward(feature_BCHW, gradient_BCHW, *of_channels), None, None, None, None
