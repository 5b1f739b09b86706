"""The kernels of `msad.models.kernels.norm_relu` on a CPU, in C (`norm_relu.c`).

torch's own operators take the feature through memory about ten times in a step, these eight times; on two cores they
need half of the time. What `torch.compile` makes of the same formulas is in between, and takes seconds to compile.

Shapes: B images, C channels, H×W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from msad.models.kernels import native

takes = native.takes


def forward(
    feature_BCHW: Tensor,
    weight_C: Tensor,
    bias_C: Tensor,
    running_mean_C: Tensor,
    running_variance_C: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the normalised feature after the ReLU, and the means and 1 / deviations of its channels.

    The running statistics are updated in place.
    """
    channels, threads = feature_BCHW.shape[1], torch.get_num_threads()
    made_BCHW, mean_C, scale_C = (torch.empty_like(given) for given in (feature_BCHW, weight_C, weight_C))
    native.call(
        native.of("norm_relu", feature_BCHW),
        "forward",
        feature_BCHW,
        made_BCHW,
        weight_C,
        bias_C,
        running_mean_C,
        running_variance_C,
        mean_C,
        scale_C,
        torch.empty(threads, 2, channels),
        feature_BCHW.numel() // channels,
        channels,
        float(momentum),
        float(eps),
        threads,
    )
    return made_BCHW, mean_C, scale_C


def backward(
    feature_BCHW: Tensor, gradient_BCHW: Tensor, mean_C: Tensor, scale_C: Tensor, weight_C: Tensor, bias_C: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the feature, the weight and the bias."""
    channels, threads = feature_BCHW.shape[1], torch.get_num_threads()
    back_BCHW, by_weight_C, by_bias_C = (torch.empty_like(given) for given in (feature_BCHW, weight_C, bias_C))
    native.call(
        native.of("norm_relu", feature_BCHW),
        "backward",
        feature_BCHW,
        gradient_BCHW,
        back_BCHW,
        mean_C,
        scale_C,
        weight_C,
        bias_C,
        by_weight_C,
        by_bias_C,
        torch.empty(2 * threads + 3, channels),
        feature_BCHW.numel() // channels,
        channels,
        threads,
    )
    return back_BCHW, by_weight_C, by_bias_C
