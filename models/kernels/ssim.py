"""The map of structural similarity and its gradient on a CPU, in C (`ssim.c`): several times as fast as torch there.

It is an operator of torch's, so that it is differentiated, compiled, exported and mapped like any other. What it
computes, and by torch where there is no kernel, is in `msad.models.similarity`.

Shapes: B images, C channels, H×W pixels; K weights of a window.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from msad.models.kernels import native


@torch.library.custom_op("msad::ssim", mutates_args=())
def ssim(first_BCHW: Tensor, second_BCHW: Tensor, window_K: Tensor, c1: float, c2: float) -> tuple[Tensor, Tensor]:
    """Return the map, and its derivatives 3×B×C×H×W by the mean of the first image, the squares and the product.

    `window_K` holds the weights of the window along one axis; as many as `ssim.c` is written for. The map is
    differentiable by the first image alone.
    """
    batch, channels, height, width = first_BCHW.shape
    made_BCHW, by_3BCHW = _empty(first_BCHW)
    threads = torch.get_num_threads()
    scratch = torch.empty(threads, 4 * height * width + 5 * width + len(window_K))
    given = first_BCHW.contiguous(), second_BCHW.contiguous(), window_K
    sizes = batch * channels, height, width, c1, c2, threads
    native.call("ssim", torch.float32, "forward", *given, made_BCHW, *by_3BCHW, scratch, *sizes)
    return made_BCHW, by_3BCHW


@torch.library.custom_op("msad::ssim_backward", mutates_args=())
def ssim_backward(
    first_BCHW: Tensor, second_BCHW: Tensor, by_3BCHW: Tensor, gradient_BCHW: Tensor, window_K: Tensor
) -> Tensor:
    """Return the gradient of the first image from that of the map."""
    batch, channels, height, width = first_BCHW.shape
    back_BCHW, threads = _empty(first_BCHW)[0], torch.get_num_threads()
    scratch = torch.empty(threads, 3 * height * width + width + len(window_K))
    given = first_BCHW.contiguous(), second_BCHW.contiguous(), window_K, gradient_BCHW.contiguous(), *by_3BCHW
    native.call("ssim", torch.float32, "backward", *given, back_BCHW, scratch, batch * channels, height, width, threads)
    return back_BCHW


def _empty(image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    return image_BCHW.new_empty(image_BCHW.shape), image_BCHW.new_empty(3, *image_BCHW.shape)


ssim.register_fake(lambda first_BCHW, *_others: _empty(first_BCHW))
ssim_backward.register_fake(lambda first_BCHW, *_others: _empty(first_BCHW)[0])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    (first_BCHW, second_BCHW, window_K, *_), (_, by_3BCHW) = inputs, output
    ctx.mark_non_differentiable(by_3BCHW)
    ctx.save_for_backward(first_BCHW, second_BCHW, by_3BCHW, window_K)


def _go_back(ctx: Any, gradient_BCHW: Tensor, _by: Tensor) -> tuple[Tensor | None, ...]:
    *kept, window_K = ctx.saved_tensors
    return ssim_backward(*kept, gradient_BCHW, window_K), None, None, None, None


ssim.register_autograd(_go_back, setup_context=_keep)
