"""A training step that the device replays by itself, instead of being told every kernel again.

A step of a small network on small images is a thousand short kernels, and naming them takes the host longer than
running them takes the device. A CUDA graph names them once (Gray, "Getting started with CUDA graphs", NVIDIA 2019). The
kernels and their order are the same, so the numbers are too.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from orchestrator.errors import first_line

Gradients = Callable[[Tensor], Tensor]


def go_on_unrecorded(error: RuntimeError, what: str, stacklevel: int) -> None:
    """Warn that something could not be recorded; a device without memory is raised as it is."""
    if isinstance(error, torch.OutOfMemoryError):
        raise error
    warnings.warn(
        f"this architecture's {what} unrecorded, which is slower on a GPU: something there waits for the device "
        f"({first_line(error)})",
        stacklevel=stacklevel,
    )


@dataclass(frozen=True)
class _Recording:
    """A graph with the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    batch: Tensor
    figures: Tensor
    gradients: list[Tensor | None]


class Replayed:
    """Wraps a step of fixed arithmetic: the first of each batch size runs as it is, the second is recorded.

    What it wraps takes a batch on a CUDA device and leaves gradients; it must neither wait for the device nor read
    anything but the batch, the parameters and the generators. A step that cannot be recorded goes on unrecorded, with a
    warning.

    Parameters
    ----------
    step
        Takes a batch, fills the parameters' gradients, and returns figures.
    parameters
        Of the model.
    generator
        What the step draws from beside torch's own generator.
    """

    def __init__(self, step: Gradients, parameters: Iterable[nn.Parameter], generator: torch.Generator) -> None:
        self._step, self._parameters, self._generator = step, list(parameters), generator
        self._warm: set[int] = set()
        self._recordings: dict[int, _Recording] = {}
        self._memory = torch.cuda.graph_pool_handle()  # of all recordings: never two of them run at once
        self._records = True

    def __call__(self, batch: Tensor) -> Tensor:
        """Run the step on a batch; the figures hold until the next call with as many rows."""
        count = len(batch)
        if self._records and count in self._warm and count not in self._recordings:
            self._record(batch)
        if not self._records or count not in self._warm:
            return self._as_it_is(batch)
        recording = self._recordings[count]
        recording.batch.copy_(batch)
        recording.graph.replay()
        for parameter, gradient in zip(self._parameters, recording.gradients, strict=True):
            parameter.grad = gradient
        return recording.figures

    def _as_it_is(self, batch: Tensor) -> Tensor:
        """Run it once without a graph: libraries load and choose their algorithms, which a recording must not."""
        current, beside = torch.cuda.current_stream(), torch.cuda.Stream()
        beside.wait_stream(current)
        with torch.cuda.stream(beside):
            figures = self._step(batch)
        current.wait_stream(beside)
        self._warm.add(len(batch))
        return figures

    def _record(self, batch: Tensor) -> None:
        graph, static = torch.cuda.CUDAGraph(), batch.clone()
        graph.register_generator_state(self._generator)
        for parameter in self._parameters:
            parameter.grad = None  # so that the recording has gradients of its own
        try:
            with torch.cuda.graph(graph, pool=self._memory):
                figures = self._step(static)
        except RuntimeError as error:
            go_on_unrecorded(error, "steps run", stacklevel=3)
            self._records = False
            return
        gradients = [parameter.grad for parameter in self._parameters]
        self._recordings[len(batch)] = _Recording(graph, static, figures, gradients)
