"""What this folder's kernels in Triton share: whether they can be used here, and how they divide their work.

Triton compiles each kernel for the GPU at its first use, and for that builds a small library once, with a C compiler
and Python's headers. Where it cannot, torch's own operators do the work, more slowly.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from msad.models.kernels import kernel_check
from msad.models.kernels.native import traced

try:
    import triton
    import triton.language as tl
except ImportError:  # torch brings it on Linux only
    triton = None

_TALL, _WIDE = 8, 64  # pixels of a tile of a plane: four a thread, so that twice as many threads fit as with eight


def takes(tensor: Tensor) -> bool:
    """Say whether kernels can read this: on the current GPU, and nobody traces."""
    return (
        triton is not None
        and not traced()
        and tensor.is_cuda
        and tensor.device.index == torch.cuda.current_device()
        and works(tensor.device)
    )


def takes_interleaved(feature_BCHW: Tensor) -> bool:
    """Say whether kernels for features suit: half precision and interleaved channels besides."""
    return (
        takes(feature_BCHW)
        and feature_BCHW.dtype in (torch.bfloat16, torch.float16)
        and feature_BCHW.is_contiguous(memory_format=torch.channels_last)
    )


_works: dict[torch.device, bool] = {}


def works(device: torch.device) -> bool:
    """Say whether kernels run on a device, which is tried once, with a warning where not."""
    if device not in _works:
        if kernel_check.recording(device):
            return False
        _works[device] = _tried(device)
    return _works[device]


def _tried(device: torch.device) -> bool:
    try:
        number = torch.zeros(1, device=device)
        with warnings.catch_warnings():  # of Triton's, at the first kernel, about a default that will change
            warnings.simplefilter("ignore")
            _increment[(1,)](number)
        return number.item() == 1
    except Exception as error:  # the compiler's, the driver's, Triton's: whatever it is, torch goes on without it
        warnings.warn(
            f"training on {device} runs without this package's own kernels, which is slower: Triton needs a C compiler "
            f"and Python's headers there ({type(error).__name__}: {next(iter(str(error).splitlines()), '')})",
            stacklevel=3,
        )
        return False


def plane_grid(planes: int, height: int, width: int) -> tuple[tuple[int, int, int], dict[str, int]]:
    """Return how many programs go through planes tile by tile, as `plane_tile` expects, and a tile's sides."""
    grid = planes, triton.cdiv(height, _TALL), triton.cdiv(width, _WIDE)
    return grid, {"TALL": _TALL, "WIDE": _WIDE}


if triton is not None:

    @triton.jit
    def _increment(number):
        tl.store(number, tl.load(number) + 1)

    @triton.jit
    def plane_tile(height, width, TALL: tl.constexpr, WIDE: tl.constexpr):
        """Return where a program's plane begins, its tile's rows and columns, which of its pixels exist, and how many
        pixels all planes have."""
        start = tl.program_id(0).to(tl.int64) * height * width
        row = (tl.program_id(1) * TALL + tl.arange(0, TALL))[:, None]
        column = (tl.program_id(2) * WIDE + tl.arange(0, WIDE))[None, :]
        return start, row, column, (row < height) & (column < width), tl.num_programs(0).to(tl.int64) * height * width
