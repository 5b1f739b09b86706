"""A kernel of this folder proves itself before a process relies on it: against torch's operators, forward and backward.

Nobody has tried every processor, GPU, driver and compiler that a kernel is compiled with. Before its first use it
therefore runs on random input, which takes milliseconds. If it does not compile, does not start or does not agree,
torch's operators do the work on that device until the process ends, and a warning says so once.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from msad.models.precision import full_float32

Operation = Callable[..., Tensor | tuple[Tensor, ...]]
Trial = tuple[Operation, Operation, tuple[Tensor, ...]]
"""The operation by a kernel and by torch's operators, and what both are given, the latter in float32."""

# The largest difference as a share of the largest value; a few times what rounding alone leaves.
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 5e-3, torch.float32: 1e-4}

left_to_torch: set[str] = set()
"""Names of kernels that are not to be used: benchmarks compare with and without one."""

MakeTrials = Callable[[torch.device, torch.dtype, int | None], Iterator[Trial]]
"""Makes the trials for a device, a type of features and, where it matters, the number of their channels."""

_trials: dict[str, MakeTrials] = {}
_agreed: set[tuple] = set()
_refused: set[tuple[str, torch.device]] = set()
_one_at_a_time = threading.RLock()


def trial(name: str) -> Callable[[MakeTrials], MakeTrials]:
    """Decorate what makes the trials of the kernel of a name."""

    def register(make: MakeTrials) -> MakeTrials:
        _trials[name] = make
        return make

    return register


def agrees(name: str, device: torch.device, dtype: torch.dtype, channels: int | None = None) -> bool:
    """Say whether a kernel can be relied on for such features; it is tried once.

    Raises
    ------
    torch.OutOfMemoryError
        The device is full, which says nothing about the kernel.
    """
    known = name, device, dtype, channels
    if name in left_to_torch or (name, device) in _refused:
        return False
    if known in _agreed:
        return True
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return False  # the graph would not survive that something compiles; the step before it has tried what it needs
    with _one_at_a_time:
        if known in _agreed or (name, device) in _refused:  # another thread was first
            return known in _agreed
        # A thread of its own has none of this one's modes: gradients, precision, a tracer's stand-ins for tensors.
        with ThreadPoolExecutor(1) as alone:
            problem = alone.submit(_problem, _trials[name], device, dtype, channels).result()
        (_refused.add(known[:2]) if problem else _agreed.add(known))
    if problem:
        warnings.warn(
            f"torch's operators, which are slower, do the work of msad's own kernel for {name} on {_called(device)}: "
            f"{problem}",
            stacklevel=3,
        )
    return not problem


# Asked while a model is compiled, not by what is made of it: what `torch.compiler.assume_constant_result` does, which
# imports the compiler first, and that takes a second.
agrees._dynamo_marked_constant = True


def forget() -> None:
    """Begin as a new process does."""
    _agreed.clear()
    _refused.clear()


def away_from_zero(shape: Sequence[int], device: torch.device, seed: int) -> Tensor:
    """Return random values of ±0.5 to ±1.5: where a gradient jumps at 0, no last digit decides."""
    generator = torch.Generator(device).manual_seed(seed)
    drawn, signs = torch.rand((2, *shape), generator=generator, device=device)
    return (drawn + 0.5) * torch.where(signs < 0.5, -1, 1)


def _problem(make_trials: MakeTrials, device: torch.device, dtype: torch.dtype, channels: int | None) -> str | None:
    """Return what is wrong with a kernel, None if nothing is."""
    where = with_type = f"with {str(dtype).removeprefix('torch.')}"
    try:
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext(), full_float32():
            for ours, torchs, given in make_trials(device, dtype, channels):
                where = f"{with_type}, {'×'.join(map(str, given[0].shape))}"
                exact = tuple(tensor.detach().float().requires_grad_(tensor.requires_grad) for tensor in given)
                for (what, one), (_, other) in zip(_made(ours, given), _made(torchs, exact), strict=True):
                    largest = other.abs().max().clamp(min=1e-30)
                    off = ((one.float() - other).abs().max() / largest).item()  # waits: a launch may fail as late
                    if not off <= TOLERANCE[dtype]:  # NaN is not
                        return f"{where} its {what} is off by {off:.1e} of the largest value"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the compiler's, the driver's, Triton's: whatever it is, torch goes on without it
        return f"{where} it failed ({type(error).__name__}: {next(iter(str(error).splitlines()), '')})"
    return None


def _made(operation: Operation, given: Sequence[Tensor]) -> list[tuple[str, Tensor]]:
    """Return the results of an operation and the gradients of what it was given, each with its name."""
    results = operation(*given)
    results = results if isinstance(results, tuple) else (results,)
    wanted = {number: tensor for number, tensor in enumerate(given, 1) if tensor.requires_grad}
    trained = [one for one in results if one.requires_grad]
    # Back goes what every precision holds: both sides get the same.
    back = [away_from_zero(one.shape, one.device, seed).bfloat16().to(one.dtype) for seed, one in enumerate(trained)]
    gradients = torch.autograd.grad(trained, list(wanted.values()), back)
    return [
        *((f"result {number}", one.detach()) for number, one in enumerate(results, 1)),
        *((f"gradient of input {number}", one) for number, one in zip(wanted, gradients, strict=True)),
    ]


def _called(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
