"""Scoring that a GPU repeats by itself, instead of being told every kernel again.

The network, its maps and their blend are two or three hundred short kernels, and for one image naming them takes the
host several times as long as running them takes the device. A CUDA graph names them once; the kernels and their order
are the same, so the numbers are too (see `orchestrator.fitting.replay`, which does the same for training).

Shapes: B images, H×W pixels.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from orchestrator.fitting.replay import go_on_unrecorded

Score = Callable[[Tensor], tuple[Tensor, Tensor]]

_MOST = 4  # recordings of one model, each for its number of images: each keeps the memory of its maps


@dataclass(frozen=True)
class _Recording:
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
        self._recordings: dict[tuple[int, ...], _Recording | None] = {}  # None: ran once
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

    def _record(self, image_BCHW: Tensor) -> _Recording | None:
        graph, image_BCHW = torch.cuda.CUDAGraph(), image_BCHW.clone()
        try:
            # Other threads may go on using the device: they read photographs, or score with other models.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                map_and_score = self._score(image_BCHW)
        except RuntimeError as error:
            go_on_unrecorded(error, "scoring runs", stacklevel=5)
            self._records = False
            return None
        tensors = [*self._model.parameters(), *self._model.buffers()]
        recording = _Recording(graph, image_BCHW, map_and_score, [tensor.untyped_storage() for tensor in tensors])
        self._recordings[tuple(image_BCHW.shape)] = recording
        return recording
