"""How far a feature is from the one wanted: in training on a CPU both distances in one pass by `feature_distance.c`.

Shapes: B images, C channels, H×W places.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from msad.models.kernels import kernel_check, native
from msad.models.kernels.kernel_check import Trial, away_from_zero

NAME = "feature distances"


def cosine_distance(made_BCHW: Tensor, wanted_BCHW: Tensor) -> Tensor:
    """Return 1 minus the cosine of the angle between both features at each place, B×1×H×W in [0, 2]."""
    # As `F.cosine_similarity`, which divides both features first: half of the passes over them, forward and backward.
    along_B1HW = (made_BCHW * wanted_BCHW).sum(dim=1, keepdim=True)
    lengths = (torch.linalg.vector_norm(f, dim=1, keepdim=True).clamp(min=1e-8) for f in (made_BCHW, wanted_BCHW))
    return 1 - along_B1HW / math.prod(lengths)


def feature_distances(made_BCHW: Tensor, wanted_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean cosine distance of all places and the mean squared difference of all values, float32 scalars."""
    device, dtype = made_BCHW.device, made_BCHW.dtype
    trained = torch.is_grad_enabled() and made_BCHW.requires_grad and not wanted_BCHW.requires_grad
    alike = made_BCHW.shape == wanted_BCHW.shape and wanted_BCHW.dtype == torch.float32
    known = trained and alike and native.has("feature_distance", device, dtype)
    if known and kernel_check.agrees(NAME, device, dtype):
        return both_distances(made_BCHW, wanted_BCHW)[:2]
    return _by_torch(made_BCHW, wanted_BCHW)


def _by_torch(made_BCHW: Tensor, wanted_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    made_BCHW = made_BCHW.float()
    return cosine_distance(made_BCHW, wanted_BCHW).mean(), F.mse_loss(made_BCHW, wanted_BCHW)


@torch.library.custom_op("msad::feature_distances", mutates_args=())
def both_distances(made_BCHW: Tensor, wanted_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return both distances, and 2×B×H×W of what the gradient by the first feature consists of at each place."""
    batch, channels, height, width = made_BCHW.shape
    # Summed by rows of places, so that the number of threads changes nothing.
    sums_2R, parts_2BHW = wanted_BCHW.new_empty(2, batch * height), wanted_BCHW.new_empty(2, batch, height, width)
    sizes = batch * height, width, channels, torch.get_num_threads()
    given = native.interleaved(made_BCHW), native.interleaved(wanted_BCHW)
    native.call("feature_distance", made_BCHW.dtype, "forward", *given, *sums_2R, *parts_2BHW, *sizes)
    cosine, squared = sums_2R.sum(dim=1)
    return cosine / parts_2BHW[0].numel(), squared / made_BCHW.numel(), parts_2BHW


@torch.library.custom_op("msad::feature_distances_backward", mutates_args=())
def both_distances_backward(
    made_BCHW: Tensor, wanted_BCHW: Tensor, parts_2BHW: Tensor, cosine: Tensor, squared: Tensor
) -> Tensor:
    """Return the gradient of the first feature from those of both distances."""
    batch, channels, height, width = made_BCHW.shape
    back_BCHW, sizes = native.empty_like(made_BCHW, made_BCHW.shape), (batch * height, width, channels)
    weights = cosine.item() / parts_2BHW[0].numel(), 2 * squared.item() / made_BCHW.numel()
    given = native.interleaved(made_BCHW), native.interleaved(wanted_BCHW), *parts_2BHW
    threads = torch.get_num_threads()
    native.call("feature_distance", made_BCHW.dtype, "backward", *given, back_BCHW, *sizes, *weights, threads)
    return back_BCHW


@both_distances.register_fake
def _(made_BCHW: Tensor, wanted_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, height, width = made_BCHW.shape
    return *(wanted_BCHW.new_empty(()) for _ in range(2)), wanted_BCHW.new_empty(2, batch, height, width)


@both_distances_backward.register_fake
def _(made_BCHW: Tensor, *_others: Tensor) -> Tensor:
    return native.empty_like(made_BCHW, made_BCHW.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(*inputs, output[2])


def _go_back(ctx: Any, cosine: Tensor, squared: Tensor, _parts: Tensor) -> tuple[Tensor, None]:
    return both_distances_backward(*ctx.saved_tensors, cosine, squared), None


both_distances.register_autograd(_go_back, setup_context=_keep)


@kernel_check.trial(NAME)
def _trial(device: torch.device, dtype: torch.dtype, _channels: None) -> Iterator[Trial]:
    made_BCHW, wanted_BCHW = (
        away_from_zero((2, 70, 5, 4), device, seed).contiguous(memory_format=torch.channels_last) for seed in range(2)
    )
    yield lambda *pair: both_distances(*pair)[:2], _by_torch, (made_BCHW.to(dtype).requires_grad_(), wanted_BCHW)
