"""Several workers that train one model together: each takes its part of every batch, and gradients are averaged.

Data parallelism as of Li et al., "PyTorch Distributed" (arXiv 2006.15704), by hand: a model is called through `losses`,
which `DistributedDataParallel` does not wrap. All workers draw the same batches and keep the same weights, so that a
group ends where a single worker does, but for the order of sums and for what looks at a whole batch at once: dropout's
masks, the overlap of the `dice` loss, and batch normalisation, which on GPUs is synchronised and on a CPU, where torch
cannot, knows each worker's part only (`--set model/norm=group`, where an architecture has it, does not care).

Tensors are named by shape: B images of a batch, T figures.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

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

    def shard(self, batch: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return this worker's part of B×... tensors or tuples of them; of a batch too small for all, one image."""
        if self.world_size == 1:
            return batch
        first, last = self._range(len(batch[-1]))

        def cut(part: Any) -> Any:
            return tuple(map(cut, part)) if isinstance(part, tuple) else part[first : max(last, first + 1)]

        return cut(batch)

    def all_reduce(self, figures_T: Tensor, parameters: Iterable[nn.Parameter], count: int) -> Tensor:
        """Replace the gradients of each worker's part of `count` images by those of all; return the mean figures."""
        if self.world_size == 1:
            return figures_T
        first, last = self._range(count)
        changed = [figures_T, *(parameter.grad for parameter in parameters if parameter.grad is not None)]
        flat = torch.cat([values.flatten() for values in changed]) * ((last - first) / count)
        distributed.all_reduce(flat)
        for values, summed in zip(changed, flat.split([values.numel() for values in changed]), strict=True):
            values.copy_(summed.view_as(values))
        return figures_T

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


def _portable(error: Exception) -> Exception:
    """Return an error that other processes can read: this one, or its words where it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever a class of somebody else's makes of it
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


SINGLE_WORKER = WorkerGroup()
