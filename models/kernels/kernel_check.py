"""A kernel of this folder proves itself before a process relies on it: against torch's operators, forward and backward.

Nobody has tried every processor, GPU, driver and compiler that a kernel is compiled with. At its first use for a class
of shapes and precisions it therefore runs once on a small random input, which takes milliseconds. If it does not
compile, does not start or does not agree, torch's operators do the work on that device until the process ends, and a
warning says so once.

Shapes: B images, C channels, H×W pixels.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from msad.models.precision import full_float32

Operation = Callable[..., Tensor | tuple[Tensor, ...]]

# The largest difference as a share of the largest value; a few times what rounding alone leaves.
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 5e-3, torch.float32: 1e-4}

left_to_torch: set[str] = set()
"""Names of kernels that are not to be used: benchmarks compare with and without one."""

_proven: set[tuple] = set()
_refused: set[tuple[str, torch.device]] = set()
_one_at_a_time = threading.RLock()


def agrees(name: str, ours: Operation, torchs: Operation, *given: Tensor, images: bool = False) -> bool:
    """Say whether a kernel can be relied on for tensors like these; the first of a class are what it is tried for.

    Parameters
    ----------
    name
        Of the kernel, for the warning.
    ours, torchs
        The operation by the kernel and by torch's operators, of the same tensors, differentiable by those of `given`
        that require a gradient. They may return several tensors, all of which are compared.
    given
        What the operation is about to be called with: B×C×H×W, and C of channels.
    images
        Whether those are images with values in [0, 1], whose pyramids count.

    Raises
    ------
    torch.OutOfMemoryError
        The device is full, which says nothing about the kernel.
    """
    device = given[0].device
    if name in left_to_torch or (name, device) in _refused:
        return False
    shapes = [_small(tensor.shape, images, device.type == "cuda") for tensor in given]
    known = name, device, *((tensor.dtype, tensor.requires_grad) for tensor in given), *shapes
    if known in _proven:
        return True
    if recording(device):  # what the step before the recorded one has proven is; what is new here is torch's
        return False
    with _one_at_a_time:
        if known in _proven or (name, device) in _refused:  # another thread was first
            return known in _proven
        if (problem := _problem(ours, torchs, given, shapes, images)) is None:
            _proven.add(known)
            return True
        _refused.add((name, device))
    warnings.warn(
        f"torch's operators, which are slower, do the work of msad's own kernel for {name} on {_called(device)}: "
        f"{problem}",
        stacklevel=3,
    )
    return False


def recording(device: torch.device) -> bool:
    """Say whether a CUDA graph is being recorded here: it would not survive that something compiles, or waits."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def forget() -> None:
    """Begin as a new process does."""
    _proven.clear()
    _refused.clear()


def _problem(
    ours: Operation, torchs: Operation, given: Sequence[Tensor], shapes: Sequence[tuple[int, ...]], images: bool
) -> str | None:
    """Return what is wrong with a kernel, None if nothing is."""
    kind = given[0].dtype
    where = f"with {str(kind).removeprefix('torch.')}, {' and '.join('×'.join(map(str, shape)) for shape in shapes)}"
    generator = torch.Generator(given[0].device).manual_seed(0)
    tried = [_like(tensor, shape, generator, images) for tensor, shape in zip(given, shapes, strict=True)]
    exact = [tensor.detach().float().requires_grad_(tensor.requires_grad) for tensor in tried]
    try:
        with torch.enable_grad(), full_float32():
            found, wanted = _with_gradients(ours, tried), _with_gradients(torchs, exact)
        for (what, one), (_, other) in zip(found, wanted, strict=True):
            largest = other.abs().max().clamp(min=1e-30)
            off = ((one.float() - other).abs().max() / largest).item()  # waits: a launch may fail as late as here
            if not off <= TOLERANCE[kind]:  # NaN is not
                return f"{where} its {what} is off by {off:.1e} of the largest value, more than {TOLERANCE[kind]:g}"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the compiler's, the driver's, Triton's: whatever it is, torch goes on without it
        return f"{where} it failed ({type(error).__name__}: {next(iter(str(error).splitlines()), '')})"
    return None


def _with_gradients(operation: Operation, given: Sequence[Tensor]) -> list[tuple[str, Tensor]]:
    """Return the results of an operation and the gradients of what it was given, each with its name."""
    made = operation(*given)
    made = made if isinstance(made, tuple) else (made,)
    wanted = {number: tensor for number, tensor in enumerate(given, 1) if tensor.requires_grad}
    device = given[0].device
    generator, total = torch.Generator(device).manual_seed(1), torch.zeros((), device=device)
    for one in made:
        if one.requires_grad:  # by a gradient that every precision holds: both sides get the same
            back = torch.randn(one.shape, generator=generator, device=device).bfloat16().float()
            total = total + (one.float() * back).sum()
    # Of one number: with gradients of its own `torch.autograd.grad` imports sympy, which takes seconds.
    gradients = torch.autograd.grad(total, list(wanted.values())) if wanted else ()
    return [
        *((f"result {number}" if len(made) > 1 else "result", one.detach()) for number, one in enumerate(made, 1)),
        *((f"gradient of input {number}", one) for number, one in zip(wanted, gradients, strict=True)),
    ]


def _like(tensor: Tensor, shape: tuple[int, ...], generator: torch.Generator, images: bool) -> Tensor:
    """Return random values of a shape, with the type and the layout of a tensor."""
    drawn = torch.rand(shape, generator=generator, device=tensor.device)
    if not images:  # 0.5 to 1.5 away from 0, on both sides: a ReLU's gradient is not to hang on the last digit
        drawn = (drawn + 0.5) * (torch.randint(0, 2, shape, generator=generator, device=tensor.device) * 2 - 1)
    drawn = drawn.to(tensor.dtype)
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        drawn = drawn.contiguous(memory_format=torch.channels_last)
    return drawn.requires_grad_(tensor.requires_grad)


def _small(shape: Sequence[int], images: bool, on_gpu: bool) -> tuple[int, ...]:
    """Return the shape that stands for a class: small, and alike in what compilers make different code for.

    Triton compiles anew where a size is 1 or is divisible by 16, and for each power of two of channels up to 64; a
    pyramid of images halves its sides up to three times. What is in C takes all sizes by the same code.
    """
    if len(shape) != 4:
        return tuple(_cut(size, 80, 16) for size in shape)
    batch, channels, *sides = shape
    most = 128 if images else 32
    sides = [_cut(side, most, most) for side in sides]
    return _cut(batch, 16, 16) if on_gpu else min(batch, 2), _cut(channels, 80, 16), *sides


def _cut(size: int, most: int, period: int) -> int:
    """Return a size up to `most` itself, else one not far above it with the same rest by `period`, its divisor."""
    return min(size, most + size % period)


def _called(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
