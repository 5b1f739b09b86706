"""What a GPU repeats by itself instead of being told every kernel again: a training step, and a bundle's scoring.

A step of a small network on small images is a thousand short kernels, the scoring of one image two or three hundred,
and naming them takes the host longer than running them takes the device. A CUDA graph names them once (Gray, "Getting
started with CUDA graphs", NVIDIA 2019). The kernels and their order are the same, so the numbers are too.

All graphs of the process are recorded here, one at a time: `Replayed` does it for any function of a batch, and a step
and a scoring are such functions. Tensors are named by shape: B images, H×W pixels.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from msad.errors import first_line

Result = TypeVar("Result")

_alone = threading.Lock()
_streams: dict[int, torch.cuda.Stream] = {}  # recordings that share memory must share the stream
_MOST = 4  # recordings of one function, each for batches of one shape: each keeps the memory of its results


@contextlib.contextmanager
def unrecorded() -> Iterator[None]:
    """Keep graphs from being recorded meanwhile: memory that another thread pins may spoil a recording."""
    with _alone:
        yield


def record(
    run: Callable[[], Result], device: torch.device, *, generators: Sequence[torch.Generator] = (), pool: Any = None
) -> tuple[torch.cuda.CUDAGraph, Result]:
    """Record what a function does on a device; return the graph and the result, whose tensors each replay fills.

    Parameters
    ----------
    run
        Must have run before, and must not wait for the device.
    device
        Where its tensors are; any GPU, not only the current one.
    generators
        What it draws from beside torch's own generator.
    pool
        Another graph's memory, to be shared with it; the two must never run at once.

    Raises
    ------
    torch.OutOfMemoryError
        The device is full.
    RuntimeError
        It cannot be recorded. Nothing is left of the attempt: generators, streams and memory can be used on.
    """
    with _alone, torch.cuda.device(device):
        at, current = torch.cuda.current_device(), torch.cuda.current_stream()
        graph, drawn_from = torch.cuda.CUDAGraph(), [torch.cuda.default_generators[at], *generators]
        before = [generator.clone_state() for generator in drawn_from]
        for generator in generators:
            graph.register_generator_state(generator)
        # A stream for each device: torch has one for all, on whichever was the first. Other threads may go on using
        # the device meanwhile: they read photographs, or score with other models.
        stream = _streams.setdefault(at, torch.cuda.Stream())
        try:
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                return graph, run()
        except BaseException as error:
            torch.cuda.set_stream(current)  # torch's context manager does not return to it
            _give_back(graph, at)
            for generator, state in zip(drawn_from, before, strict=True):
                _mend(generator, state)
            if full := next((one for one in _chain(error) if isinstance(one, torch.OutOfMemoryError)), None):
                raise full from None
            raise


def _give_back(graph: torch.cuda.CUDAGraph, device: int) -> None:
    """Return the memory of a recording that failed, which torch (up to 2.15 at least) goes on setting apart for it."""
    with contextlib.suppress(RuntimeError, AttributeError):
        pool = graph.pool()
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)


def _mend(generator: torch.Generator, before: torch.Generator) -> None:
    """Give a generator a new state where a failed recording has left the old one waiting for the recording's end.

    Only there: other graphs that draw from the generator know it by its state.
    """
    try:
        state = generator.get_state()
        torch.rand((), generator=generator, device=generator.device)
        generator.set_state(state)
    except RuntimeError:
        generator.graphsafe_set_state(before)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those it came from: that a recording failed is raised in the place of the reason."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def run_aside(run: Callable[[], Result], device: torch.device) -> Result:
    """Run a function once without a graph: libraries load and choose their algorithms, which a recording must not."""
    with torch.cuda.device(device):
        current, beside = torch.cuda.current_stream(), torch.cuda.Stream()
        beside.wait_stream(current)
        with torch.cuda.stream(beside):
            result = run()
        current.wait_stream(beside)
        return result


@dataclass(frozen=True)
class _Recording(Generic[Result]):
    """A graph, the batch that it reads, and what it fills."""

    graph: torch.cuda.CUDAGraph
    batch: Tensor
    result: Result


class Replayed(Generic[Result]):
    """Wraps what is done to a batch on a GPU: the first of a shape runs as it is, the second is recorded.

    What cannot be recorded, because something in it waits for the device, goes on unrecorded, with a warning.

    Parameters
    ----------
    run
        Takes a batch on a CUDA device; what else it reads must stay where it is, or be forgotten with `forget`.
    what
        What the warning says of it: `steps run`.
    generators
        What it draws from beside torch's own generator.
    one_memory
        Whether the recordings of all shapes share one memory: no two of them may ever run at once.
    """

    def __init__(
        self,
        run: Callable[[Tensor], Result],
        what: str,
        *,
        generators: Sequence[torch.Generator] = (),
        one_memory: bool = False,
    ) -> None:
        self._run, self._what, self._generators, self._one_memory = run, what, generators, one_memory
        self._recordings: dict[torch.Size, _Recording[Result] | None] = {}  # None: ran once
        self._records = True

    def __call__(self, batch: Tensor) -> Result:
        """Return what comes of a batch; what a recording fills holds until the next batch of that shape."""
        if self._records and batch.shape in self._recordings:
            if recording := self._recordings[batch.shape] or self._record(batch):
                recording.batch.copy_(batch)
                recording.graph.replay()
                return recording.result
        elif self._records:
            if len(self._recordings) == _MOST:
                del self._recordings[next(iter(self._recordings))]
            self._recordings[batch.shape] = None
        # Before a backward pass is recorded, torch wants it run on a stream aside (its notes, "CUDA semantics").
        return run_aside(lambda: self._run(batch), batch.device) if torch.is_grad_enabled() else self._run(batch)

    def forget(self) -> None:
        """Forget all recordings."""
        self._recordings.clear()

    def _record(self, batch: Tensor) -> _Recording[Result] | None:
        static, others = batch.clone(), [one.graph for one in self._recordings.values() if one is not None]
        pool = others[0].pool() if others and self._one_memory else None
        try:
            graph, result = record(lambda: self._run(static), batch.device, generators=self._generators, pool=pool)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            *_, reason = _chain(error)
            warnings.warn(
                f"this architecture's {self._what} unrecorded, which is slower on a GPU: something there waits for the "
                f"device ({first_line(reason)})",
                stacklevel=4,  # where the step or the scoring is called
            )
            self._records = False
            self.forget()
            return None
        recording = self._recordings[batch.shape] = _Recording(graph, static, result)
        return recording


class ReplayedStep:
    """A training step of fixed arithmetic, `Replayed` with its gradients.

    Parameters
    ----------
    step
        Takes a batch, fills the parameters' gradients, of which there are none before, and returns figures. It must
        read nothing but the batch, the parameters and the generators.
    parameters
        Of the model, all on one device.
    generator
        What the step draws from beside torch's own generator.
    """

    def __init__(
        self, step: Callable[[Tensor], Tensor], parameters: Iterable[nn.Parameter], generator: torch.Generator
    ) -> None:
        self._parameters = parameters = list(parameters)

        def run(batch: Tensor) -> tuple[Tensor, list[Tensor | None]]:
            for parameter in parameters:  # so that each recording has gradients of its own
                parameter.grad = None
            return step(batch), [parameter.grad for parameter in parameters]

        self._replayed = Replayed(run, "steps run", generators=[generator], one_memory=True)

    def __call__(self, batch: Tensor) -> Tensor:
        """Run the step on a batch; the figures hold until the next call with as many rows."""
        figures, gradients = self._replayed(batch)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        return figures


class ReplayedScoring:
    """The scoring of one model, `Replayed` as long as its weights stay where they are.

    One instance may be called by several threads.

    Parameters
    ----------
    score
        Takes `image_BCHW` on the device and returns `map_B1HW` and `score_B`.
    model
        The network in it: when its weights move, what was recorded is forgotten.
    """

    def __init__(self, score: Callable[[Tensor], tuple[Tensor, Tensor]], model: nn.Module) -> None:
        self._score, self._model = score, model
        self._weights_at, self._lock = -1, threading.Lock()

        def run(image_BCHW: Tensor) -> tuple[tuple[Tensor, Tensor], list[torch.UntypedStorage]]:
            # A recording must not outlive the memory of the weights.
            weights = [tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers())]
            return score(image_BCHW), weights

        self._replayed = Replayed(run, "scoring runs")

    def __call__(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Score a batch; the results are the caller's own."""
        if torch.is_autocast_enabled(image_BCHW.device.type):
            return self._score(image_BCHW)
        with self._lock:
            weights_at = next(self._model.parameters()).data_ptr()
            if weights_at != self._weights_at:
                self._replayed.forget()
                self._weights_at = weights_at
            (map_B1HW, score_B), _ = self._replayed(image_BCHW)
            return map_B1HW.clone(), score_B.clone()
