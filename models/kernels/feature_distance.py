"""How far a feature is from the one wanted: in training on a CPU both distances in one pass by `feature_distance.c`.

Shapes: B images, C channels, H×W places.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from msad.models.kernels import kernel_check, native


def cosine_distance(made_BCHW: Tensor, wanted_BCHW: Tensor) -> Tensor:
    """Return 1 minus the cosine of the angle between both features at each place, B×1×H×W in [0, 2]."""
    # As `F.cosine_similarity`, which divides both features first: half of the passes over them, forward and backward.
    along_B1HW = (made_BCHW * wanted_BCHW).sum(dim=1, keepdim=True)
    lengths = (torch.linalg.vector_norm(f, dim=1, keepdim=True).clamp(min=1e-8) for f in (made_BCHW, wanted_BCHW))
    return 1 - along_B1HW / math.prod(lengths)


def feature_distances(made_BCHW: Tensor, wanted_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean cosine distance of all places and the mean squared difference of all values, float32 scalars."""
    given = made_BCHW, wanted_BCHW
    if _suit(*given) and kernel_check.agrees("feature distances", _Distances.apply, _by_torch, *given):
        return _Distances.apply(*given)
    return _by_torch(*given)


def _by_torch(made_BCHW: Tensor, wanted_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    made_BCHW = made_BCHW.float()
    return cosine_distance(made_BCHW, wanted_BCHW).mean(), F.mse_loss(made_BCHW, wanted_BCHW)


def _suit(made_BCHW: Tensor, wanted_BCHW: Tensor) -> bool:
    """Say whether the library can be used: the first feature alone wants a gradient, and the second is float32."""
    trained = torch.is_grad_enabled() and made_BCHW.requires_grad and not wanted_BCHW.requires_grad
    alike = made_BCHW.shape == wanted_BCHW.shape and wanted_BCHW.dtype == torch.float32
    return trained and alike and native.takes(made_BCHW) and native.takes(wanted_BCHW)


class _Distances(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, made_BCHW: Tensor, wanted_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        batch, channels, height, width = made_BCHW.shape
        # Summed by rows of places, so that the number of threads changes nothing.
        sums_2R = wanted_BCHW.new_empty(2, batch * height)
        parts_2BHW = wanted_BCHW.new_empty(2, batch, height, width)
        sizes = batch * height, width, channels, torch.get_num_threads()
        given = made_BCHW, wanted_BCHW
        native.call(native.of("feature_distance", made_BCHW), "forward", *given, *sums_2R, *parts_2BHW, *sizes)
        ctx.save_for_backward(*given, parts_2BHW)
        cosine, squared = sums_2R.sum(dim=1).unbind()
        return cosine / parts_2BHW[0].numel(), squared / made_BCHW.numel()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cosine: Tensor, squared: Tensor) -> tuple[Tensor, None]:
        made_BCHW, wanted_BCHW, parts_2BHW = ctx.saved_tensors
        back_BCHW = torch.empty_like(made_BCHW)
        batch, channels, height, width = made_BCHW.shape
        sizes = batch * height, width, channels
        weights = cosine.item() / parts_2BHW[0].numel(), 2 * squared.item() / made_BCHW.numel()
        given = made_BCHW, wanted_BCHW, *parts_2BHW, back_BCHW
        library = native.of("feature_distance", made_BCHW)
        native.call(library, "backward", *given, *sizes, *weights, torch.get_num_threads())
        return back_BCHW, None
