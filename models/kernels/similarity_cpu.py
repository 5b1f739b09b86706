"""The kernels of `msad.models.kernels.similarity` on a CPU, in C: several times as fast as torch there.

Shapes: B images, C channels, H×W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from msad.models.kernels import native


def takes(image_BCHW: Tensor) -> bool:
    """Say whether the libraries are there, and suit: on a CPU."""
    return native.ready() and image_BCHW.device.type == "cpu"


def ssim(first_BCHW: Tensor, second_BCHW: Tensor, window_K: Tensor, c1: float, c2: float) -> tuple[Tensor, Tensor]:
    """Return the map, and its derivatives 3×B×C×H×W by the mean of the first image, the squares and the product.

    `window_K` holds the weights of the window along one axis; as many as `ssim.c` is written for.
    """
    batch, channels, height, width = first_BCHW.shape
    made_BCHW, by_3BCHW = torch.empty_like(first_BCHW), first_BCHW.new_empty(3, *first_BCHW.shape)
    threads = torch.get_num_threads()
    scratch = torch.empty(threads, 4 * height * width + 5 * width + len(window_K))
    made = window_K, made_BCHW, *by_3BCHW, scratch
    sizes = batch * channels, height, width
    native.call("ssim", "forward", first_BCHW, second_BCHW, *made, *sizes, c1, c2, threads)
    return made_BCHW, by_3BCHW


def ssim_gradient(
    first_BCHW: Tensor, second_BCHW: Tensor, window_K: Tensor, by_3BCHW: Tensor, gradient_BCHW: Tensor
) -> Tensor:
    """Return the gradient of the first image from that of the map."""
    batch, channels, height, width = first_BCHW.shape
    back_BCHW, threads = torch.empty_like(first_BCHW), torch.get_num_threads()
    scratch = torch.empty(threads, 3 * height * width + width + len(window_K))
    given = first_BCHW, second_BCHW, window_K, gradient_BCHW, *by_3BCHW
    native.call("ssim", "backward", *given, back_BCHW, scratch, batch * channels, height, width, threads)
    return back_BCHW


def gradient_similarity(first_BCHW: Tensor, second_BCHW: Tensor, scales: int, c: float) -> tuple[Tensor, Tensor]:
    """Return the mean, a scalar, and its derivative B×1×H×W by the first image's grey values."""
    batch, channels, height, width = first_BCHW.shape
    threads = torch.get_num_threads()
    means_B, by_grey_B1HW = first_BCHW.new_empty(batch), first_BCHW.new_empty(batch, 1, height, width)
    scratch = torch.empty(threads, 3 * scales * (height + 2) * (width + 2) + 2 * width)
    made, sizes = (means_B, by_grey_B1HW, scratch), (batch, channels, height, width, scales)
    native.call("gradients", "forward", first_BCHW, second_BCHW, *made, *sizes, c, threads)
    return means_B.mean(), by_grey_B1HW
