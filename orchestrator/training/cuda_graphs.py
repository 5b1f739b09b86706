"""What a GPU repeats by itself instead of being told every kernel again: a training step, and a bundle's scoring.

A step of a small network on small images is a thousand short kernels, the scoring of one image two or three hundred,
and naming them takes the host longer than running them takes the device. A CUDA graph names them once (Gray, "Getting
started with CUDA graphs", NVIDIA 2019). The kernels and their order are the same, so the numbers are too.

All graphs of the process are recorded here, one at a time. Tensors are named by shape: B images, H×W pixels.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from msad.errors import first_line

Result = TypeVar("Result")
Gradients = Callable[[Tensor], Tensor]
Score = Callable[[Tensor], tuple[Tensor, Tensor]]

_alone = threading.Lock()
_streams: dict[int, torch.cuda.Stream] = {}  # recordings that share memory must share the stream
_MOST = 4  # recordings of one model's scoring, each for its number of images: each keeps the memory of its maps


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


def _go_on_unrecorded(error: RuntimeError, what: str, stacklevel: int) -> None:
    """Warn that something could not be recorded; a device without memory is raised as it is."""
    if isinstance(error, torch.OutOfMemoryError):
        raise error
    *_, reason = _chain(error)
    warnings.warn(
        f"this architecture's {what} unrecorded, which is slower on a GPU: something there waits for the device "
        f"({first_line(reason)})",
        stacklevel=stacklevel + 1,
    )


@dataclass(frozen=True)
class _RecordedStep:
    """A graph with the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    batch: Tensor
    figures: Tensor
    gradients: list[Tensor | None]


class ReplayedStep:
    """Wraps a step of fixed arithmetic: the first of each batch size runs as it is, the second is recorded.

    What it wraps takes a batch on a CUDA device and leaves gradients; it must neither wait for the device nor read
    anything but the batch, the parameters and the generators. A step that cannot be recorded goes on unrecorded, with a
    warning.

    Parameters
    ----------
    step
        Takes a batch, fills the parameters' gradients, and returns figures.
    parameters
        Of the model, all on one device.
    generator
        What the step draws from beside torch's own generator.
    """

    def __init__(self, step: Gradients, parameters: Iterable[nn.Parameter], generator: torch.Generator) -> None:
        self._step, self._parameters, self._generator = step, list(parameters), generator
        self._device = self._parameters[0].device
        self._warm: set[int] = set()
        self._recordings: dict[int, _RecordedStep] = {}
        self._records = True

    def __call__(self, batch: Tensor) -> Tensor:
        """Run the step on a batch; the figures hold until the next call with as many rows."""
        count = len(batch)
        if self._records and count in self._warm and count not in self._recordings:
            self._record(batch)
        if not self._records or count not in self._warm:
            self._warm.add(count)
            return run_aside(lambda: self._step(batch), self._device)
        recording = self._recordings[count]
        recording.batch.copy_(batch)
        recording.graph.replay()
        for parameter, gradient in zip(self._parameters, recording.gradients, strict=True):
            parameter.grad = gradient
        return recording.figures

    def _record(self, batch: Tensor) -> None:
        static, shared = batch.clone(), next(iter(self._recordings.values()), None)
        self._forget_gradients()  # so that the recording has some of its own
        try:
            # One memory for all sizes: never two of them run at once.
            graph, figures = record(
                lambda: self._step(static),
                self._device,
                generators=[self._generator],
                pool=shared.graph.pool() if shared else None,
            )
        except RuntimeError as error:
            _go_on_unrecorded(error, "steps run", stacklevel=3)
            self._records = False
            self._recordings.clear()
            self._forget_gradients()  # those of the attempt were never computed
            return
        gradients = [parameter.grad for parameter in self._parameters]
        self._recordings[len(batch)] = _RecordedStep(graph, static, figures, gradients)

    def _forget_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None


@dataclass(frozen=True)
class _RecordedScoring:
    """A graph, the tensors that it reads and writes, and the memory of the weights, which it must not outlive."""

    graph: torch.cuda.CUDAGraph
    image: Tensor
    map_and_score: tuple[Tensor, Tensor]
    weights: list[torch.UntypedStorage]


class ReplayedScoring:
    """Wraps the scoring of one model on a CUDA device: the first batch of a size runs as it is, the second is recorded.

    A model that cannot be recorded, because something in it waits for the device, goes on unrecorded, with a warning.
    One instance may be called by several threads.

    Parameters
    ----------
    score
        Takes `image_BCHW` on the device and returns `map_B1HW` and `score_B`.
    model
        The network in it: when its weights move, what was recorded is forgotten.
    """

    def __init__(self, score: Score, model: nn.Module) -> None:
        self._score, self._model = score, model
        self._recordings: dict[tuple[int, ...], _RecordedScoring | None] = {}  # None: ran once
        self._weights_at = -1
        self._records, self._lock = True, threading.Lock()

    def __call__(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Score a batch; the results are the caller's own."""
        if not self._records or torch.is_autocast_enabled(image_BCHW.device.type):
            return self._score(image_BCHW)
        with self._lock:
            weights_at = next(self._model.parameters()).data_ptr()
            if weights_at != self._weights_at:
                self._recordings.clear()
                self._weights_at = weights_at
            shape = tuple(image_BCHW.shape)
            if shape not in self._recordings:  # libraries load and choose their algorithms, which a recording must not
                map_and_score = self._score(image_BCHW)
                if len(self._recordings) == _MOST:
                    del self._recordings[next(iter(self._recordings))]
                self._recordings[shape] = None
                return map_and_score
            recording = self._recordings[shape] or self._record(image_BCHW)
            if recording is None:
                return self._score(image_BCHW)
            recording.image.copy_(image_BCHW)
            recording.graph.replay()
            map_B1HW, score_B = recording.map_and_score
            return map_B1HW.clone(), score_B.clone()

    def _record(self, image_BCHW: Tensor) -> _RecordedScoring | None:
        static_BCHW = image_BCHW.clone()
        try:
            graph, map_and_score = record(lambda: self._score(static_BCHW), image_BCHW.device)
        except RuntimeError as error:
            _go_on_unrecorded(error, "scoring runs", stacklevel=5)
            self._records = False
            self._recordings.clear()
            return None
        tensors = [*self._model.parameters(), *self._model.buffers()]
        recording = _RecordedScoring(
            graph, static_BCHW, map_and_score, [tensor.untyped_storage() for tensor in tensors]
        )
        self._recordings[tuple(image_BCHW.shape)] = recording
        return recording
