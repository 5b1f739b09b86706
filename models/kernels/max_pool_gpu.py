"""The kernels of `msad.models.kernels.max_pool` on a GPU, in Triton.

Shapes: B images, C channels, H×W pixels.
"""

from __future__ import annotations

from torch import Tensor

from msad.models.kernels.gpu_kernels import triton

if triton is not None:
    import triton.language as tl

_TILE = 2048  # maxima that a program finds
_WIDEST = 64  # channels of them


def run(direction: str, feature_BCHW: Tensor, *others: Tensor) -> None:
    """Run a kernel, `forward` or `backward`, on what it reads and what it fills, in its own order."""
    batch, channels, height, width = feature_BCHW.shape
    places, wide = batch * (height // 2) * (width // 2), min(triton.next_power_of_2(channels), _WIDEST)
    tall = _TILE // wide
    kernel = {"forward": _forward, "backward": _backward}[direction]
    grid = triton.cdiv(places, tall), triton.cdiv(channels, wide)
    kernel[grid](feature_BCHW, *others, places, width, channels, TALL=tall, WIDE=wide)


if triton is not None:

    @triton.jit
    def _tile(places, width, channels, TALL: tl.constexpr, WIDE: tl.constexpr):
        """Return where a tile's maxima are, where the first of their four places is, and which exist."""
        place = tl.program_id(0).to(tl.int64) * TALL + tl.arange(0, TALL)
        channel = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
        first = place // (width // 2) * 2 * width + place % (width // 2) * 2
        exists = (place < places)[:, None] & (channel < channels)[None, :]
        return place[:, None] * channels + channel[None, :], first[:, None] * channels + channel[None, :], exists

    @triton.jit
    def _largest(feature, first, width, channels, exists):
        """Return the maximum and its place, 0 to 3: of equal values the first one, and a NaN wherever there is one."""
        most, at = tl.load(feature + first, mask=exists, other=0.0), tl.zeros_like(first)
        for other in tl.static_range(1, 4):
            value = tl.load(feature + first + (other // 2 * width + other % 2) * channels, mask=exists, other=0.0)
            later = (value > most) | (value != value)
            most, at = tl.where(later, value, most), tl.where(later, other, at)
        return most, at

    @triton.jit
    def _forward(feature, made, places, width, channels, TALL: tl.constexpr, WIDE: tl.constexpr):
        to, first, exists = _tile(places, width, channels, TALL, WIDE)
        most, _ = _largest(feature, first, width, channels, exists)
        tl.store(made + to, most, mask=exists)

    @triton.jit
    def _backward(feature, gradient, back, places, width, channels, TALL: tl.constexpr, WIDE: tl.constexpr):
        of, first, exists = _tile(places, width, channels, TALL, WIDE)
        _, at = _largest(feature, first, width, channels, exists)
        passed = tl.load(gradient + of, mask=exists, other=0.0)
        for place in tl.static_range(4):
            to = first + (place // 2 * width + place % 2) * channels
            tl.store(back + to, tl.where(at == place, passed, 0.0).to(back.dtype.element_ty), mask=exists)
