"""Several workers that train one model together: each takes its part of every batch, and gradients are averaged.

Averaging them is left to `DistributedDataParallel` (Li et al., "PyTorch Distributed", arXiv 2006.15704). All workers
draw the same random numbers and keep the same weights, so that a group ends where a single worker does, but for the
order of sums and for what looks at a whole batch at once: dropout's masks, the overlap of the `dice` loss, and batch
normalisation, which on GPUs is synchronised and on a CPU, where torch cannot, knows each worker's part only
(`--set model/norm=group`, where an architecture has it, does not care).

Tensors are named by shape: T figures.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from msad.models.base import AnomalyModel

Value = TypeVar("Value")
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class WorkerGroup:
    """This worker among those that train one model; with a `world_size` of 1 nothing is shared.

    With more, the default process group of `torch.distributed` must be open in every worker, and all of them must call
    the methods in the same order. `rank` counts from 0.
    """

    rank: int = 0
    world_size: int = 1

    def synchronise_norm(self, model: Model) -> Model:
        """Return the model with batch normalisation over all parts of a batch, where the device can."""
        if self.world_size > 1 and next(model.parameters()).is_cuda:
            return nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return model

    def losses(self, model: AnomalyModel) -> Callable[..., dict[str, Tensor]]:
        """Return the model's `losses`, whose gradients become the mean over all workers on their way back."""
        if self.world_size == 1:
            return model.losses
        return DistributedDataParallel(_Losses(model), static_graph=True)  # which knows unused parameters after a step

    def part(self, count: int) -> slice:
        """Return which of `count` images are this worker's; where they are too few for all, one that is another's."""
        first, last = self._range(count)
        return slice(first, max(last, first + 1))

    def weight(self, count: int) -> float:
        """Return what this worker's part of `count` images counts in a mean over workers: 1, where parts are alike."""
        first, last = self._range(count)
        return self.world_size * (last - first) / count

    def mean(self, figures_T: Tensor) -> Tensor:
        """Return the mean over workers."""
        if self.world_size > 1:
            distributed.all_reduce(figures_T)
        return figures_T / self.world_size

    def on_rank_zero(self, function: Callable[..., Value], *arguments: Any) -> Value:
        """Let the first worker call a function; return its result, or raise its error, in every worker.

        The other workers get tensors on the CPU.
        """
        if self.world_size == 1:
            return function(*arguments)
        result, error, file = None, None, io.BytesIO()
        if self.rank == 0:
            try:
                result = function(*arguments)
            except Exception as caught:
                error = _portable(caught)
            torch.save((result, error), file)
        box = [file.getvalue()]
        distributed.broadcast_object_list(box)
        if self.rank:  # what it unpickles was pickled by this job's first worker a moment ago
            result, error = torch.load(io.BytesIO(box[0]), map_location="cpu", weights_only=False)
        if error is not None:
            raise error
        return result

    def on_every_rank(self, function: Callable[..., Value], *arguments: Any) -> Value:
        """Let every worker call a function, and return its result; where one fails, raise its error in every worker."""
        if self.world_size == 1:
            return function(*arguments)
        result, error = None, None
        try:
            result = function(*arguments)
        except Exception as caught:
            error = _portable(caught)
        errors: list[Exception | None] = [None] * self.world_size
        distributed.all_gather_object(errors, error)
        if error := next((error for error in errors if error is not None), None):
            raise error
        return result

    def _range(self, count: int) -> tuple[int, int]:
        return count * self.rank // self.world_size, count * (self.rank + 1) // self.world_size


class _Losses(nn.Module):
    """What `DistributedDataParallel` can wrap: it knows of `forward` alone."""

    def __init__(self, model: AnomalyModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *batch: Any, terms: Any) -> dict[str, Tensor]:
        return self.model.losses(*batch, terms=terms)


def _portable(error: Exception) -> Exception:
    """Return an error that other processes can read: this one, or its words where it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever a class of somebody else's makes of it
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


SINGLE_WORKER = WorkerGroup()
