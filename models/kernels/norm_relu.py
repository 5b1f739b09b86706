"""Batch normalisation and a ReLU as one layer: as torch computes them, in training with half of the memory traffic.

What the ReLU let through is computed again going back instead of kept. The kernels are in C for a CPU and in Triton for
a GPU; elsewhere, and in evaluation, the layer is torch's own two. They are one operator of torch's, so that it is
differentiated, compiled, exported and mapped like any other.

Shapes: B images, C channels, H×W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msad.models.kernels import kernel_check, native, norm_relu_cpu, norm_relu_gpu
from msad.models.kernels.kernel_check import Trial, away_from_zero

NAME = "batch normalisation and ReLU"
_EPS = 1e-5  # in trials


class NormReLU(nn.Module):
    """`nn.BatchNorm2d` with a ReLU after it; the same results up to rounding, wherever they are computed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, feature_BCHW: Tensor) -> Tensor:
        norm = self.norm
        if not self.training or not _usable(feature_BCHW, norm):
            return F.relu(norm(feature_BCHW), inplace=True)
        made_BCHW, mean_C, variance_C, _ = norm_relu(feature_BCHW, norm.weight, norm.bias, norm.eps)
        norm.num_batches_tracked.add_(1)
        norm.running_mean.lerp_(mean_C, norm.momentum)
        norm.running_var.lerp_(variance_C, norm.momentum)
        return made_BCHW


def _usable(feature_BCHW: Tensor, norm: nn.Module) -> bool:
    # No kernel synchronises its statistics with other processes.
    if type(norm) is not nn.BatchNorm2d or norm.weight.dtype != torch.float32:
        return False
    device, dtype = feature_BCHW.device, feature_BCHW.dtype
    if native.has("norm_relu", device, dtype):  # takes all sizes by the same code
        return kernel_check.agrees(NAME, device, dtype)
    return norm_relu_gpu.takes(device, dtype) and kernel_check.agrees(NAME, device, dtype, feature_BCHW.shape[1])


def _results(feature_BCHW: Tensor, of_channels: Tensor, count: int) -> tuple[Tensor, ...]:
    """Return what a kernel fills: a feature with interleaved channels, and so many numbers of each channel."""
    made_BCHW = native.empty_like(feature_BCHW, feature_BCHW.shape)
    return made_BCHW, *(torch.empty_like(of_channels) for _ in range(count))


def _kernels(feature_BCHW: Tensor) -> ModuleType:
    return norm_relu_gpu if feature_BCHW.is_cuda else norm_relu_cpu


@torch.library.custom_op("msad::norm_relu", mutates_args=())
def norm_relu(
    feature_BCHW: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the layer's result, and of each channel the mean, the variance and 1 / the deviation.

    The variance is that of n - 1, which running statistics follow; the deviation that of n, and of `eps`.
    """
    results = _results(feature_BCHW, weight_C, 3)
    _kernels(feature_BCHW).forward(native.interleaved(feature_BCHW), weight_C, bias_C, eps, *results)
    return results


@torch.library.custom_op("msad::norm_relu_backward", mutates_args=())
def norm_relu_backward(
    feature_BCHW: Tensor, weight_C: Tensor, bias_C: Tensor, mean_C: Tensor, scale_C: Tensor, gradient_BCHW: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the feature, the weight and the bias."""
    results = _results(feature_BCHW, weight_C, 2)
    of_channels, gradient_BCHW = (weight_C, bias_C, mean_C, scale_C), native.interleaved(gradient_BCHW)
    _kernels(feature_BCHW).backward(native.interleaved(feature_BCHW), *of_channels, gradient_BCHW, *results)
    return results


@norm_relu.register_fake
def _(feature_BCHW: Tensor, weight_C: Tensor, *_others: Any) -> tuple[Tensor, ...]:
    return _results(feature_BCHW, weight_C, 3)


@norm_relu_backward.register_fake
def _(feature_BCHW: Tensor, weight_C: Tensor, *_others: Any) -> tuple[Tensor, ...]:
    return _results(feature_BCHW, weight_C, 2)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    (feature_BCHW, weight_C, bias_C, _), (_, mean_C, variance_C, scale_C) = inputs, output
    ctx.mark_non_differentiable(mean_C, variance_C, scale_C)
    ctx.save_for_backward(feature_BCHW, weight_C, bias_C, mean_C, scale_C)


def _go_back(ctx: Any, gradient_BCHW: Tensor, *_others: Tensor) -> tuple[Tensor | None, ...]:
    return *norm_relu_backward(*ctx.saved_tensors, gradient_BCHW), None


norm_relu.register_autograd(_go_back, setup_context=_keep)


@kernel_check.trial(NAME)
def _trial(device: torch.device, dtype: torch.dtype, channels: int | None) -> Iterator[Trial]:
    def ours(feature_BCHW: Tensor, weight_C: Tensor, bias_C: Tensor) -> tuple[Tensor, ...]:
        return norm_relu(feature_BCHW, weight_C, bias_C, _EPS)[:3]

    def torchs(feature_BCHW: Tensor, weight_C: Tensor, bias_C: Tensor) -> tuple[Tensor, ...]:
        mean_C, variance_C = torch.zeros_like(weight_C).detach(), torch.zeros_like(weight_C).detach()
        normal_BCHW = F.batch_norm(feature_BCHW, mean_C, variance_C, weight_C, bias_C, True, 1.0, _EPS)
        return F.relu(normal_BCHW), mean_C, variance_C

    for shape in [(2, 123, 9, 7)] if channels is None else norm_relu_gpu.trial_shapes(channels):
        feature_BCHW = away_from_zero(shape, device, 0).to(dtype, memory_format=torch.channels_last)
        weight_C = away_from_zero(shape[1:2], device, 1)
        # A small bias leaves results as far from 0, where a ReLU's gradient jumps.
        bias_C = away_from_zero(shape[1:2], device, 2) / 10
        yield ours, torchs, tuple(tensor.requires_grad_() for tensor in (feature_BCHW, weight_C, bias_C))
