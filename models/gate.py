"""A gated mean of two features: in training by `gate.c` or on a GPU by Triton, else by torch, with twice the passes.

Shapes: B images, C channels, H×W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models import gate_gpu, gpu_kernels, native


def gated(decoder_BCHW: Tensor, skip_BCHW: Tensor, gate_BCHW: Tensor) -> Tensor:
    """Return `g * skip + (1 - g) * decoder` with `g = sigmoid(gate)`, B×C×H×W."""
    given = decoder_BCHW, skip_BCHW, gate_BCHW
    trained = torch.is_grad_enabled() and any(feature.requires_grad for feature in given)
    if trained and any(
        all(takes(feature) and _alike(feature, gate_BCHW) for feature in given)
        for takes in (native.takes, gpu_kernels.takes_interleaved)
    ):
        return _Gated.apply(*given)
    return torch.lerp(decoder_BCHW, skip_BCHW, torch.sigmoid(gate_BCHW))


def _alike(one: Tensor, other: Tensor) -> bool:
    """Say whether one kernel can go through both at once."""
    return one.shape == other.shape and one.dtype == other.dtype


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> Tensor:
        made_BCHW = torch.empty_like(given[0])
        _run("forward", *given, made_BCHW)
        ctx.save_for_backward(*given)
        return made_BCHW

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BCHW: Tensor) -> tuple[Tensor, ...]:
        given = ctx.saved_tensors
        gradient_BCHW = gradient_BCHW.contiguous(memory_format=torch.channels_last)
        back = tuple(torch.empty_like(feature_BCHW) for feature_BCHW in given)
        _run("backward", *given, gradient_BCHW, *back)
        return back


def _run(direction: str, *features: Tensor) -> None:
    if native.takes(features[0]):
        sizes = features[0].numel(), torch.get_num_threads()
        native.call(native.of("gate", features[0]), direction, *features, *sizes)
    else:
        gate_gpu.run(direction, *features)
