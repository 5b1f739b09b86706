"""The kernels of `msad.models.kernels.norm_relu` on a CPU, in C (`norm_relu.c`).

torch's own operators take the feature through memory about ten times in a step, these eight times. What `torch.compile`
makes of the same formulas is in between, and takes seconds to compile.

Shapes: B images, C channels, H×W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from msad.models.kernels import native


def forward(
    feature_BCHW: Tensor,
    weight_C: Tensor,
    bias_C: Tensor,
    eps: float,
    made_BCHW: Tensor,
    mean_C: Tensor,
    variance_C: Tensor,
    scale_C: Tensor,
) -> None:
    """Fill the result and the channels' means, variances and 1 / deviations; see `norm_relu`."""
    channels, threads = feature_BCHW.shape[1], torch.get_num_threads()
    sizes = feature_BCHW.numel() // channels, channels, eps, threads
    given, filled = (feature_BCHW, weight_C, bias_C), (made_BCHW, mean_C, variance_C, scale_C)
    scratch = torch.empty(threads, 2, channels)
    native.call("norm_relu", feature_BCHW.dtype, "forward", *given, *filled, scratch, *sizes)


def backward(
    feature_BCHW: Tensor,
    weight_C: Tensor,
    bias_C: Tensor,
    mean_C: Tensor,
    scale_C: Tensor,
    gradient_BCHW: Tensor,
    *by: Tensor,
) -> None:
    """Fill the gradients of the feature, the weight and the bias."""
    channels, threads = feature_BCHW.shape[1], torch.get_num_threads()
    sizes = feature_BCHW.numel() // channels, channels, threads
    given = feature_BCHW, weight_C, bias_C, mean_C, scale_C, gradient_BCHW
    native.call(
        "norm_relu", feature_BCHW.dtype, "backward", *given, *by, torch.empty(2 * threads + 3, channels), *sizes
    )
