"""Structural similarity and gradient-magnitude similarity of two images, per pixel and differentiable.

Tensors are named by shape: B images, C channels, H×W pixels; values in [0, 1]. All is computed in float32 even under
autocast: the variances of SSIM are differences of nearly equal numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from msad.models.kernels import kernel_check, native
from msad.models.kernels.kernel_check import Trial
from msad.models.kernels.ssim import ssim

NAME = "SSIM"
SIGMA = 1.5  # of SSIM's Gaussian window, in pixels
RADIUS = 5  # its half width: 11×11 pixels
C1, C2 = 0.01**2, 0.03**2
MS_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
GRADIENT_C = 170 / 255**2  # the 170 of GMSD, which is for values up to 255
GRADIENT_SCALES = 4
SMALLEST = 8  # pixels of the coarsest scale's shorter side


def _in_float32(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(function)
    def run(first_BCHW: Tensor, second_BCHW: Tensor, *args: Any, **options: Any) -> Tensor:
        with torch.autocast(first_BCHW.device.type, enabled=False):
            return function(first_BCHW.float(), second_BCHW.float(), *args, **options)

    return run


@_in_float32
def ssim_map(first_BCHW: Tensor, second_BCHW: Tensor) -> Tensor:
    """Return the structural similarity index per pixel and channel, B×C×H×W in [-1, 1]; 1 where both agree.

    Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE TIP 13(4), 2004: an
    11×11 Gaussian window of sigma 1.5, population variances. Borders are mirrored, so the map has the images' size.
    """
    if _by_kernel(first_BCHW, second_BCHW):
        return _ssim_by_kernel(first_BCHW, second_BCHW)
    return _ssim(first_BCHW, second_BCHW)


def _by_kernel(first_BCHW: Tensor, second_BCHW: Tensor) -> bool:
    """Say whether the kernel in C takes two images, of which the first alone wants a gradient.

    Maps for scores are left to torch: a threshold that is chosen on one machine holds on another.
    """
    return (
        torch.is_grad_enabled()
        and first_BCHW.requires_grad
        and not second_BCHW.requires_grad
        and first_BCHW.shape == second_BCHW.shape
        and min(first_BCHW.shape[-2:]) > RADIUS
        and native.has("ssim", first_BCHW.device, first_BCHW.dtype)
        and kernel_check.agrees(NAME, first_BCHW.device, torch.float32)
    )


def _ssim_by_kernel(first_BCHW: Tensor, second_BCHW: Tensor) -> Tensor:
    return ssim(first_BCHW, second_BCHW, _window().float(), C1, C2)[0]


@kernel_check.trial(NAME)
def _trial(device: torch.device, _dtype: torch.dtype, _channels: None) -> Iterator[Trial]:
    first_BCHW, second_BCHW = ((kernel_check.away_from_zero((2, 3, 17, 20), device, seed) + 2) / 4 for seed in range(2))

    yield _ssim_by_kernel, _ssim, (first_BCHW.requires_grad_(), second_BCHW)


def _ssim(first_BCHW: Tensor, second_BCHW: Tensor) -> Tensor:
    luminance_BCHW, structure_BCHW = _ssim_parts(first_BCHW, second_BCHW)
    return luminance_BCHW * structure_BCHW


@_in_float32
def ms_ssim(first_BCHW: Tensor, second_BCHW: Tensor) -> Tensor:
    """Return the multi-scale structural similarity of each image, shape B, in [0, 1].

    Wang, Simoncelli, Bovik, "Multiscale structural similarity for image quality assessment", Asilomar 2003. Changed:
    images below 176 pixels use as many of the five scales as are at least a window wide, their weights summing to 1.
    """
    shorter = min(first_BCHW.shape[-2:])
    weights = [w for scale, w in enumerate(MS_WEIGHTS) if scale == 0 or shorter >> scale > 2 * RADIUS]
    result_B = first_BCHW.new_ones(len(first_BCHW))
    for scale, weight in enumerate(weights):
        luminance_BCHW, structure_BCHW = _ssim_parts(first_BCHW, second_BCHW)
        last = scale == len(weights) - 1
        part_BCHW = luminance_BCHW * structure_BCHW if last else structure_BCHW
        # Kept off 0, where the power's gradient is infinite.
        result_B = result_B * part_BCHW.mean(dim=(1, 2, 3)).clamp(min=1e-4) ** (weight / sum(weights))
        if not last:
            first_BCHW, second_BCHW = F.avg_pool2d(first_BCHW, 2), F.avg_pool2d(second_BCHW, 2)
    return result_B


@_in_float32
def gradient_similarity_map(first_BCHW: Tensor, second_BCHW: Tensor, scales: int = GRADIENT_SCALES) -> Tensor:
    """Return the gradient-magnitude similarity per pixel, averaged over scales: B×1×H×W in (0, 1]; 1 where both agree.

    Xue et al., "Gradient magnitude similarity deviation", arXiv 1308.3052 (Prewitt gradients of the grey image); the
    mean over an image pyramid is RIAD's (Zavrtanik et al., Pattern Recognition 112, 2021). Scales whose shorter side
    would be under 8 pixels are left out.

    Parameters
    ----------
    first_BCHW, second_BCHW
        Images.
    scales
        Levels of the pyramid at most, each half of the one before.
    """
    size = first_BCHW.shape[-2:]
    fine_B1HW, *coarse = _gradient_similarities(first_BCHW, second_BCHW, scales)
    grown = [F.interpolate(map_B1HW, size, mode="bilinear", align_corners=False) for map_B1HW in coarse]
    return torch.stack([fine_B1HW, *grown]).mean(dim=0)


@_in_float32
def gradient_similarity(first_BCHW: Tensor, second_BCHW: Tensor) -> Tensor:
    """Return the mean of `gradient_similarity_map`, a scalar, without making the map.

    It is the mean over scales of each scale's mean, as in RIAD's loss. That is the map's mean wherever a side halves
    without a rest at each scale, since a coarse pixel is grown to as many pixels as it stands for.
    """
    maps = _gradient_similarities(first_BCHW, second_BCHW, GRADIENT_SCALES)
    return torch.stack([map_B1HW.mean() for map_B1HW in maps]).mean()


def _gradient_similarities(first_BCHW: Tensor, second_BCHW: Tensor, scales: int) -> list[Tensor]:
    """Return the map B×1×H×W of each scale, the finest first."""
    # Each image by itself: where one of them is the goal, nothing goes back through its gradients.
    first_B1HW, second_B1HW = (image_BCHW.mean(dim=1, keepdim=True) for image_BCHW in (first_BCHW, second_BCHW))
    maps = []
    for scale in range(count := _scales(*first_BCHW.shape[-2:], scales)):
        one_B1HW, other_B1HW = _gradient_magnitude(first_B1HW), _gradient_magnitude(second_B1HW)
        maps.append((2 * one_B1HW * other_B1HW + GRADIENT_C) / (one_B1HW.square() + other_B1HW.square() + GRADIENT_C))
        if scale < count - 1:
            first_B1HW, second_B1HW = F.avg_pool2d(first_B1HW, 2), F.avg_pool2d(second_B1HW, 2)
    return maps


def _scales(height: int, width: int, most: int) -> int:
    """Return how many scales there are, each half of the one before; one at least, whatever the size."""
    return max(1, sum(min(height, width) >> scale >= SMALLEST for scale in range(most)))


def _gradient_magnitude(grey_BCHW: Tensor) -> Tensor:
    # Prewitt's 3×3 filters by shifts: a difference along one axis, a mean of three along the other.
    padded = F.pad(grey_BCHW, (1, 1, 1, 1), mode="replicate")
    across, down = padded[..., 2:] - padded[..., :-2], padded[..., 2:, :] - padded[..., :-2, :]
    across = (across[..., :-2, :] + across[..., 1:-1, :] + across[..., 2:, :]) / 3
    down = (down[..., :-2] + down[..., 1:-1] + down[..., 2:]) / 3
    return (across.square() + down.square() + 1e-12).sqrt()  # the root has no gradient at 0


def _ssim_parts(first_BCHW: Tensor, second_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Return SSIM's luminance factor and its contrast-structure factor, B×C×H×W each."""
    x, y = first_BCHW - 0.5, second_BCHW - 0.5  # smaller squares lose fewer digits in the differences below
    # Joined by channels and not by images, whose number an exported graph leaves open.
    # The two variances are only ever added, so their squares are blurred together.
    blurred_BCHW = _blur(torch.cat([x, y, x.square() + y.square(), x * y], dim=1))
    mean_x, mean_y, squares, product = blurred_BCHW.chunk(4, dim=1)
    variances = squares - mean_x.square() - mean_y.square()
    structure = (2 * (product - mean_x * mean_y) + C2) / (variances + C2)
    mean_x, mean_y = mean_x + 0.5, mean_y + 0.5
    return (2 * mean_x * mean_y + C1) / (mean_x.square() + mean_y.square() + C1), structure


def _blur(image_BCHW: Tensor) -> Tensor:
    height, width = image_BCHW.shape[-2:]
    down_HH, across_WW = (_blur_matrix(side, image_BCHW.device) for side in (height, width))
    return down_HH @ image_BCHW @ across_WW.T


@functools.cache  # never dropped: a recorded CUDA graph goes on reading it
@torch.inference_mode(False)  # kept for training and for export, whoever asks first
def _blur_matrix(side: int, device: torch.device) -> Tensor:
    """Return the side×side matrix that blurs a column with SSIM's window, borders mirrored.

    Two products with a banded matrix are an order of magnitude faster on a CPU than convolutions with one channel,
    forward and backward, although most of their factors are 0.
    """
    source = torch.arange(side).unsqueeze(1) + torch.arange(-RADIUS, RADIUS + 1)
    source = (side - 1) - ((side - 1) - source.abs()).abs()  # mirrored without repeating the border
    matrix = torch.zeros(side, side, dtype=torch.float64)
    matrix.scatter_add_(1, source.clamp(0, side - 1), _window().expand(side, -1))
    return matrix.float().to(device)


def _window() -> Tensor:
    """Return the weights of SSIM's window along one axis, float64."""
    window = torch.exp(-torch.arange(-RADIUS, RADIUS + 1).double().square() / (2 * SIGMA**2))
    return window / window.sum()
