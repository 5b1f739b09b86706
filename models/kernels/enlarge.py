"""Features of twice the sides by bilinear interpolation: in training on a CPU by `enlarge.c`, else by torch.

Shapes: B images, C channels, H×W places.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from msad.models.kernels import kernel_check, native
from msad.models.kernels.kernel_check import Trial, away_from_zero

NAME = "enlarging"


def doubled(feature_BCHW: Tensor) -> Tensor:
    """Return B×C×2H×2W as `torch.nn.functional.interpolate` does with `mode="bilinear"`."""
    device, dtype = feature_BCHW.device, feature_BCHW.dtype
    trained = torch.is_grad_enabled() and feature_BCHW.requires_grad
    if trained and native.has("enlarge", device, dtype) and kernel_check.agrees(NAME, device, dtype):
        return enlarge(feature_BCHW)
    return _by_torch(feature_BCHW)


def _by_torch(feature_BCHW: Tensor) -> Tensor:
    return F.interpolate(feature_BCHW, scale_factor=2, mode="bilinear")


@torch.library.custom_op("msad::enlarge", mutates_args=())
def enlarge(feature_BCHW: Tensor) -> Tensor:
    """Return B×C×2H×2W, its channels interleaved."""
    made_BCHW = _larger(feature_BCHW)
    _run("forward", feature_BCHW, made_BCHW, feature_BCHW.shape)
    return made_BCHW


@torch.library.custom_op("msad::enlarge_backward", mutates_args=())
def enlarge_backward(gradient_BCHW: Tensor) -> Tensor:
    """Return the gradient B×C×H×W of the feature from B×C×2H×2W of the result."""
    back_BCHW = _smaller(gradient_BCHW)
    _run("backward", gradient_BCHW, back_BCHW, back_BCHW.shape)
    return back_BCHW


@enlarge.register_fake
def _larger(feature_BCHW: Tensor) -> Tensor:
    batch, channels, height, width = feature_BCHW.shape
    return native.empty_like(feature_BCHW, (batch, channels, 2 * height, 2 * width))


@enlarge_backward.register_fake
def _smaller(gradient_BCHW: Tensor) -> Tensor:
    batch, channels, height, width = gradient_BCHW.shape
    return native.empty_like(gradient_BCHW, (batch, channels, height // 2, width // 2))


def _run(direction: str, given_BCHW: Tensor, filled_BCHW: Tensor, size: torch.Size) -> None:
    """`size` is that of the smaller feature."""
    batch, channels, height, width = size
    threads = torch.get_num_threads()
    scratch = torch.empty(threads, 2 * width * channels)
    sizes = batch, height, width, channels, threads
    native.call("enlarge", given_BCHW.dtype, direction, native.interleaved(given_BCHW), filled_BCHW, scratch, *sizes)


def _go_back(_ctx: Any, gradient_BCHW: Tensor) -> Tensor:
    return enlarge_backward(gradient_BCHW)


enlarge.register_autograd(_go_back)


@kernel_check.trial(NAME)
def _trial(device: torch.device, dtype: torch.dtype, _channels: None) -> Iterator[Trial]:
    feature_BCHW = away_from_zero((2, 70, 5, 4), device, 0).to(dtype, memory_format=torch.channels_last)
    yield enlarge, _by_torch, (feature_BCHW.requires_grad_(),)
