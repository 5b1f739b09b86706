"""The similarities of `models.similarity` with their gradients on a CPU, in C: several times as fast as torch there.

Shapes: B images, C channels, H×W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models import native


def takes(image_BCHW: Tensor) -> bool:
    """Say whether the libraries are there, and suit: on a CPU."""
    return native.ready() and image_BCHW.device.type == "cpu"


class SSIM(torch.autograd.Function):
    """The map B×C×H×W of two images in float32, differentiable by the first one.

    `window_K` holds the weights of the window along one axis; as many as `ssim.c` is written for.
    """

    @staticmethod
    def forward(ctx: Any, first_BCHW: Tensor, second_BCHW: Tensor, window_K: Tensor, c1: float, c2: float) -> Tensor:
        first_BCHW, second_BCHW = first_BCHW.contiguous(), second_BCHW.contiguous()
        batch, channels, height, width = first_BCHW.shape
        made_BCHW, *derivatives = (torch.empty_like(first_BCHW) for _ in range(4))
        threads = torch.get_num_threads()
        scratch = torch.empty(threads, 4 * height * width + 5 * width + len(window_K))
        sizes = batch * channels, height, width
        native.call(
            "ssim",
            "forward",
            first_BCHW,
            second_BCHW,
            window_K,
            made_BCHW,
            *derivatives,
            scratch,
            *sizes,
            c1,
            c2,
            threads,
        )
        ctx.save_for_backward(first_BCHW, second_BCHW, window_K, *derivatives)
        return made_BCHW

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BCHW: Tensor) -> tuple[Tensor | None, ...]:
        first_BCHW, second_BCHW, window_K, *derivatives = ctx.saved_tensors
        batch, channels, height, width = first_BCHW.shape
        back_BCHW, threads = torch.empty_like(first_BCHW), torch.get_num_threads()
        scratch = torch.empty(threads, 3 * height * width + width + len(window_K))
        sizes = batch * channels, height, width
        native.call(
            "ssim",
            "backward",
            first_BCHW,
            second_BCHW,
            window_K,
            gradient_BCHW.contiguous(),
            *derivatives,
            back_BCHW,
            scratch,
            *sizes,
            threads,
        )
        return back_BCHW, None, None, None, None


class GradientSimilarity(torch.autograd.Function):
    """The mean over images and scales of two images' gradient-magnitude similarity, differentiable by the first one."""

    @staticmethod
    def forward(ctx: Any, first_BCHW: Tensor, second_BCHW: Tensor, scales: int, c: float) -> Tensor:
        batch, channels, height, width = first_BCHW.shape
        threads = torch.get_num_threads()
        means_B, by_grey_B1HW = first_BCHW.new_empty(batch), first_BCHW.new_empty(batch, 1, height, width)
        scratch = torch.empty(threads, 3 * scales * (height + 2) * (width + 2) + 2 * width)
        sizes = batch, channels, height, width, scales
        images = first_BCHW.contiguous(), second_BCHW.contiguous()
        native.call("gradients", "forward", *images, means_B, by_grey_B1HW, scratch, *sizes, c, threads)
        ctx.channels = channels
        ctx.save_for_backward(by_grey_B1HW)
        return means_B.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (by_grey_B1HW,) = ctx.saved_tensors
        return (by_grey_B1HW * (gradient / ctx.channels)).expand(-1, ctx.channels, -1, -1), None, None, None
