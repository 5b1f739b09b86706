"""The kernels of `msad.models.kernels.gate` on a GPU, in Triton."""

from __future__ import annotations

from torch import Tensor

from msad.models.kernels.gpu_kernels import triton

if triton is not None:
    import triton.language as tl

_BLOCK = 2048  # elements that a program looks at


def run(direction: str, *features: Tensor) -> None:
    """Run a kernel, `forward` or `backward`, on what it reads and what it fills, in its own order."""
    kernel = {"forward": _forward, "backward": _backward}[direction]
    count = features[0].numel()
    kernel[(triton.cdiv(count, _BLOCK),)](*features, count, BLOCK=_BLOCK)


if triton is not None:

    @triton.jit
    def _forward(decoder, skip, gate, made, count, BLOCK: tl.constexpr):
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        exists = at < count
        away = tl.load(decoder + at, mask=exists, other=0.0).to(tl.float32)
        near = tl.load(skip + at, mask=exists, other=0.0).to(tl.float32)
        open = tl.sigmoid(tl.load(gate + at, mask=exists, other=0.0).to(tl.float32))
        tl.store(made + at, (away + open * (near - away)).to(made.dtype.element_ty), mask=exists)

    @triton.jit
    def _backward(decoder, skip, gate, gradient, by_decoder, by_skip, by_gate, count, BLOCK: tl.constexpr):
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        exists = at < count
        away = tl.load(decoder + at, mask=exists, other=0.0).to(tl.float32)
        near = tl.load(skip + at, mask=exists, other=0.0).to(tl.float32)
        open = tl.sigmoid(tl.load(gate + at, mask=exists, other=0.0).to(tl.float32))
        passed = tl.load(gradient + at, mask=exists, other=0.0).to(tl.float32)
        through = passed * open
        kind = by_skip.dtype.element_ty
        tl.store(by_skip + at, through.to(kind), mask=exists)
        tl.store(by_decoder + at, (passed - through).to(kind), mask=exists)
        tl.store(by_gate + at, (through * (1 - open) * (near - away)).to(kind), mask=exists)
