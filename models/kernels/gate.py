"""A gated mean of two features: in training by `gate.c` or on a GPU by Triton, else by torch, with twice the passes.

Shapes: B images, C channels, H×W pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from msad.models.kernels import gate_gpu, gpu_kernels, kernel_check, native


def gated(decoder_BCHW: Tensor, skip_BCHW: Tensor, gate_BCHW: Tensor) -> Tensor:
    """Return `g * skip + (1 - g) * decoder` with `g = sigmoid(gate)`, B×C×H×W."""
    given = decoder_BCHW, skip_BCHW, gate_BCHW
    trained = torch.is_grad_enabled() and any(feature.requires_grad for feature in given)
    for takes, run in ((native.takes, _run), (gpu_kernels.takes_interleaved, gate_gpu.run)) if trained else ():
        ours = functools.partial(_Gated.apply, run)
        alike = all(takes(feature) and _alike(feature, gate_BCHW) for feature in given)
        if alike and kernel_check.agrees("gates", ours, _by_torch, *given):
            return ours(*given)
    return _by_torch(*given)


def _by_torch(*given: Tensor) -> Tensor:
    if len(kinds := {feature_BCHW.dtype for feature_BCHW in given}) > 1:  # autocast's doing; `lerp` wants them alike
        kind = functools.reduce(torch.promote_types, kinds)
        given = tuple(feature_BCHW.to(kind) for feature_BCHW in given)
    decoder_BCHW, skip_BCHW, gate_BCHW = given
    return torch.lerp(decoder_BCHW, skip_BCHW, torch.sigmoid(gate_BCHW))


def _alike(one: Tensor, other: Tensor) -> bool:
    """Say whether one kernel can go through both at once."""
    return one.shape == other.shape and one.dtype == other.dtype


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Callable[..., None], *given: Tensor) -> Tensor:
        made_BCHW = torch.empty_like(given[0])
        run("forward", *given, made_BCHW)
        ctx.run = run
        ctx.save_for_backward(*given)
        return made_BCHW

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BCHW: Tensor) -> tuple[Tensor | None, ...]:
        given = ctx.saved_tensors
        gradient_BCHW = gradient_BCHW.contiguous(memory_format=torch.channels_last)
        back = tuple(torch.empty_like(feature_BCHW) for feature_BCHW in given)
        ctx.run("backward", *given, gradient_BCHW, *back)
        return None, *back


def _run(direction: str, *features: Tensor) -> None:
    """As `gate_gpu.run`, on a CPU."""
    sizes = features[0].numel(), torch.get_num_threads()
    native.call(native.of("gate", features[0]), direction, *features, *sizes)
