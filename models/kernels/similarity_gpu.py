"""The kernels of `msad.models.kernels.similarity` on a GPU, in Triton: two dozen where torch has hundreds.

Shapes: B images, C channels, H×W pixels; kernels take planes, P = B·C of them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from msad.models.kernels.gpu_kernels import plane_grid, plane_tile, takes, triton

if triton is not None:
    import triton.language as tl

__all__ = ["gradient_similarity", "ssim", "ssim_gradient", "takes"]


def ssim(first_BCHW: Tensor, second_BCHW: Tensor, window_K: Tensor, c1: float, c2: float) -> tuple[Tensor, Tensor]:
    """Return the map, and its derivatives 3×B×C×H×W by the mean of the first image, the squares and the product.

    `window_K` holds the weights of the window along one axis, an odd number of them.
    """
    size, grid, constants = _planes(first_BCHW, window_K)
    across_4BCHW = first_BCHW.new_empty(4, *first_BCHW.shape)
    _across[grid](first_BCHW, second_BCHW, window_K, across_4BCHW, *size, **constants)
    made_BCHW, by_3BCHW = torch.empty_like(first_BCHW), first_BCHW.new_empty(3, *first_BCHW.shape)
    _compared[grid](across_4BCHW, window_K, made_BCHW, by_3BCHW, *size, c1, c2, **constants)
    return made_BCHW, by_3BCHW


def ssim_gradient(
    first_BCHW: Tensor, second_BCHW: Tensor, window_K: Tensor, by_3BCHW: Tensor, gradient_BCHW: Tensor
) -> Tensor:
    """Return the gradient of the first image from that of the map."""
    size, grid, constants = _planes(first_BCHW, window_K)
    flowing_3BCHW, back_BCHW = by_3BCHW * gradient_BCHW, torch.empty_like(first_BCHW)
    down_3BCHW = torch.empty_like(flowing_3BCHW)
    _down_again[(3 * grid[0], *grid[1:])](flowing_3BCHW, window_K, down_3BCHW, *size, **constants)
    _across_again[grid](down_3BCHW, first_BCHW, second_BCHW, window_K, back_BCHW, *size, **constants)
    return back_BCHW


def gradient_similarity(first_BCHW: Tensor, second_BCHW: Tensor, scales: int, c: float) -> tuple[Tensor, Tensor]:
    """Return the mean, a scalar, and its derivative B×1×H×W by the first image's grey values."""
    batch = len(first_BCHW)
    greys = [torch.cat([image_BCHW.mean(dim=1, keepdim=True) for image_BCHW in (first_BCHW, second_BCHW)])]
    for _ in range(scales - 1):
        greys.append(F.avg_pool2d(greys[-1], 2))
    grids = [plane_grid(batch, *grey.shape[-2:]) for grey in greys]
    programs = [math.prod(grid) for grid, _ in grids]
    part_P = first_BCHW.new_empty(sum(programs))
    back, small = greys[0].new_empty(0), (0, 0)
    places = zip(greys, grids, part_P.split(programs), strict=True)
    for grey, (grid, sides), part in reversed(list(places)):
        size = tuple(grey.shape[-2:])
        share = 1 / (scales * batch * size[0] * size[1])
        by_axis, fine = grey.new_empty(2, batch, *size), grey.new_empty(batch, 1, *size)
        _similar[grid](grey, by_axis, part, *size, c, share, **sides)
        _prewitt_again[grid](by_axis, back, fine, *size, *small, **sides)
        back, small = fine, size
    return part_P.sum(), back


def _planes(image_BCHW: Tensor, window_K: Tensor) -> tuple[tuple[int, int], tuple[int, int, int], dict[str, int]]:
    batch, channels, height, width = image_BCHW.shape
    grid, sides = plane_grid(batch * channels, height, width)
    return (height, width), grid, {"RADIUS": len(window_K) // 2, **sides}


if triton is not None:

    @triton.jit
    def _mirrored(at, side):
        at = tl.where(at < 0, -at, at)
        return tl.where(at < side, at, 2 * (side - 1) - at)

    @triton.jit
    def _shifted(at, exists):
        """Return values less a half: smaller squares lose fewer digits."""
        return tl.load(at, mask=exists, other=0.5) - 0.5

    @triton.jit
    def _across(
        first, second, window, made, height, width, RADIUS: tl.constexpr, TALL: tl.constexpr, WIDE: tl.constexpr
    ):
        """Apply the window along rows to both images, the sum of their squares and their product."""
        start, row, column, exists, count = plane_tile(height, width, TALL, WIDE)
        means, others, squares, products = 0.0, 0.0, 0.0, 0.0
        for k in tl.static_range(2 * RADIUS + 1):
            weight = tl.load(window + k)
            at = row * width + _mirrored(column + k - RADIUS, width)
            one, other = _shifted(first + start + at, exists), _shifted(second + start + at, exists)
            means += weight * one
            others += weight * other
            squares += weight * (one * one + other * other)
            products += weight * one * other
        to = made + start + (row * width + column)
        tl.store(to, means, mask=exists)
        tl.store(to + count, others, mask=exists)
        tl.store(to + 2 * count, squares, mask=exists)
        tl.store(to + 3 * count, products, mask=exists)

    @triton.jit
    def _compared(
        across, window, made, by, height, width, c1, c2, RADIUS: tl.constexpr, TALL: tl.constexpr, WIDE: tl.constexpr
    ):
        """Apply the window along columns; write the map, and its derivatives by mean, squares and product."""
        start, row, column, exists, count = plane_tile(height, width, TALL, WIDE)
        mean, other, squares, product = 0.0, 0.0, 0.0, 0.0
        for k in tl.static_range(2 * RADIUS + 1):
            weight = tl.load(window + k)
            at = across + start + (_mirrored(row + k - RADIUS, height) * width + column)
            mean += weight * tl.load(at, mask=exists, other=0.0)
            other += weight * tl.load(at + count, mask=exists, other=0.0)
            squares += weight * tl.load(at + 2 * count, mask=exists, other=0.0)
            product += weight * tl.load(at + 3 * count, mask=exists, other=0.0)
        spread = squares - mean * mean - other * other + c2
        structure = (2 * (product - mean * other) + c2) / spread
        light, lit = mean + 0.5, other + 0.5
        lights = light * light + lit * lit + c1
        luminance = (2 * light * lit + c1) / lights
        by_product = 2 * luminance / spread
        by_squares = -luminance * structure / spread
        by_mean = 2 * structure * (lit - luminance * light) / lights - 2 * mean * by_squares - other * by_product
        at = row * width + column
        tl.store(made + start + at, luminance * structure, mask=exists)
        by += start
        tl.store(by + at, by_mean, mask=exists)
        tl.store(by + count + at, by_squares, mask=exists)
        tl.store(by + 2 * count + at, by_product, mask=exists)

    @triton.jit
    def _returned(values, place, side, stride, k, exists, RADIUS: tl.constexpr):
        """Return what comes back through one weight of the window to places of an axis.

        A place got its share from each neighbour, and near a border from the neighbours' mirror images too.
        """
        away = k - RADIUS
        at = place + away
        value = tl.load(values + at * stride, mask=exists & (at >= 0) & (at < side), other=0.0)
        if k > RADIUS:
            at = away - place
            value += tl.load(values + at * stride, mask=exists & (place > 0) & (at >= 0), other=0.0)
            at = 2 * (side - 1) - place - away
            value += tl.load(values + at * stride, mask=exists & (place < side - 1) & (at < side), other=0.0)
        return value

    @triton.jit
    def _down_again(values, window, made, height, width, RADIUS: tl.constexpr, TALL: tl.constexpr, WIDE: tl.constexpr):
        """Send gradients back through the window along columns."""
        start, row, column, exists, _ = plane_tile(height, width, TALL, WIDE)
        sums = 0.0
        for k in tl.static_range(2 * RADIUS + 1):
            value = _returned(values + start + column, row, height, width, k, exists, RADIUS)
            sums += tl.load(window + k) * value
        tl.store(made + start + (row * width + column), sums, mask=exists)

    @triton.jit
    def _across_again(
        values, first, second, window, made, height, width, RADIUS: tl.constexpr, TALL: tl.constexpr, WIDE: tl.constexpr
    ):
        """Send the gradients of mean, squares and product back through the window along rows, to the first image."""
        start, row, column, exists, count = plane_tile(height, width, TALL, WIDE)
        line = values + start + row * width
        mean, squares, product = 0.0, 0.0, 0.0
        for k in tl.static_range(2 * RADIUS + 1):
            weight = tl.load(window + k)
            mean += weight * _returned(line, column, width, 1, k, exists, RADIUS)
            squares += weight * _returned(line + count, column, width, 1, k, exists, RADIUS)
            product += weight * _returned(line + 2 * count, column, width, 1, k, exists, RADIUS)
        at = row * width + column
        one, other = _shifted(first + start + at, exists), _shifted(second + start + at, exists)
        tl.store(made + start + at, mean + 2 * one * squares + other * product, mask=exists)

    @triton.jit
    def _prewitt(grey, row, column, height, width, exists):
        """Return Prewitt's gradients: a difference along one axis, a mean of three along the other; borders repeat."""
        above, below = tl.maximum(row - 1, 0) * width, tl.minimum(row + 1, height - 1) * width
        left, right = tl.maximum(column - 1, 0), tl.minimum(column + 1, width - 1)
        above_left = tl.load(grey + above + left, mask=exists, other=0.0)
        above_right = tl.load(grey + above + right, mask=exists, other=0.0)
        below_left = tl.load(grey + below + left, mask=exists, other=0.0)
        below_right = tl.load(grey + below + right, mask=exists, other=0.0)
        across = tl.load(grey + row * width + right, mask=exists, other=0.0)
        across -= tl.load(grey + row * width + left, mask=exists, other=0.0)
        down = tl.load(grey + below + column, mask=exists, other=0.0)
        down -= tl.load(grey + above + column, mask=exists, other=0.0)
        across += above_right - above_left + below_right - below_left
        down += below_left - above_left + below_right - above_right
        return across / 3, down / 3

    @triton.jit
    def _similar(greys, by, part, height, width, c, share, TALL: tl.constexpr, WIDE: tl.constexpr):
        """Write a tile's sum of similarities, times `share`, and its derivatives by the first image's gradients.

        Of the 2B grey images the first B are compared with the others.
        """
        start, row, column, exists, count = plane_tile(height, width, TALL, WIDE)
        across, down = _prewitt(greys + start, row, column, height, width, exists)
        other_across, other_down = _prewitt(greys + count + start, row, column, height, width, exists)
        one = tl.sqrt(across * across + down * down + 1e-12)  # the root has no gradient at 0
        other = tl.sqrt(other_across * other_across + other_down * other_down + 1e-12)
        squares = one * one + other * other + c
        similarity = (2 * one * other + c) / squares
        by_one = share * 2 * (other - similarity * one) / (squares * one)
        at = by + start + (row * width + column)
        tl.store(at, by_one * across, mask=exists)
        tl.store(at + count, by_one * down, mask=exists)
        sums = tl.sum(tl.sum(tl.where(exists, similarity, 0.0), axis=1), axis=0)
        program = (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(2) + tl.program_id(2)
        tl.store(part + program, share * sums)

    @triton.jit
    def _factors(place, away, side):
        """Return what a place weighs in the difference and in the sum at the place `away` from it along an axis."""
        difference, total = tl.zeros_like(place) - away, tl.zeros_like(place) + 1
        if away == 0:  # a border counts for the one beyond it as well
            difference += tl.where(place == side - 1, 1, 0) - tl.where(place == 0, 1, 0)
            total += tl.where(place == side - 1, 1, 0) + tl.where(place == 0, 1, 0)
        return difference, total

    @triton.jit
    def _prewitt_again(by, coarse, made, height, width, low, narrow, TALL: tl.constexpr, WIDE: tl.constexpr):
        """Send the derivatives back through Prewitt's filters; add those of the next scale, low×narrow, or of none."""
        start, row, column, exists, count = plane_tile(height, width, TALL, WIDE)
        back = 0.0
        for i in tl.static_range(3):
            down, over_rows = _factors(row, i - 1, height)
            for j in tl.static_range(3):
                across, over_columns = _factors(column, j - 1, width)
                at_row, at_column = row + i - 1, column + j - 1
                inside = exists & (at_row >= 0) & (at_row < height) & (at_column >= 0) & (at_column < width)
                at = by + start + (at_row * width + at_column)
                back += tl.load(at, mask=inside, other=0.0) * (across * over_rows)
                back += tl.load(at + count, mask=inside, other=0.0) * (down * over_columns)
        halved = exists & (row // 2 < low) & (column // 2 < narrow)
        coarse += tl.program_id(0).to(tl.int64) * low * narrow
        back = back / 3 + tl.load(coarse + (row // 2 * narrow + column // 2), mask=halved, other=0.0) / 4
        tl.store(made + start + (row * width + column), back, mask=exists)
