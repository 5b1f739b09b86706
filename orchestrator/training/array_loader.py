"""Rows of a large array, in batches on a device: kept there where they fit, else read ahead from the memory map."""

from __future__ import annotations

import itertools
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from msad.training.cuda_graphs import unrecorded

MOST_BYTES = 16 << 30
"""An array beyond this, or beyond half of what is free on a GPU, stays in the host's memory."""

_AHEAD = 2  # batches that are read while a step runs


def fits(nbytes: int, device: torch.device) -> bool:
    """Say whether this many bytes belong on the device; on a CPU nothing is copied, so nothing does."""
    if device.type == "cpu":
        return False
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else MOST_BYTES
    return nbytes <= min(MOST_BYTES, free // 2)


def shared(array: np.ndarray) -> Tensor:
    """Return an array as a tensor on the same memory, or the same pages of a file: it must not be written to."""
    with warnings.catch_warnings():  # tensors cannot be read-only, and torch says so of every array that is
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)


class ArrayLoader:
    """The rows of an array, by their numbers.

    Parameters
    ----------
    array
        N rows of any shape and type, perhaps memory-mapped; only batches of it are copied unless it fits on the device.
    device
        Where the rows are wanted.
    """

    def __init__(self, array: np.ndarray, device: torch.device) -> None:
        self._array, self._device = array, device
        self._kept = shared(array).to(device) if fits(array.nbytes, device) else None

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, index_B: Tensor) -> Tensor:
        """Return the rows at `index_B`, on the device."""
        if self._kept is not None:
            return self._kept[index_B.to(self._device)]
        return self._read(index_B).to(self._device)

    def stream(self, indices: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the rows of one index after the other; those that come from the host are read ahead."""
        if self._kept is not None or self._device.type != "cuda":
            yield from (self[index_B] for index_B in indices)
            return
        current, beside = torch.cuda.current_stream(self._device), torch.cuda.Stream(self._device)
        indices = iter(indices)
        with ThreadPoolExecutor(1, "rows") as reader:

            def pinned(index_B: Tensor) -> Tensor:
                read = self._read(index_B)
                with unrecorded():  # the step beside it may be one that is recorded
                    return read.pin_memory()

            def copied(read: Future[Tensor]) -> Tensor:
                with torch.cuda.stream(beside):
                    return read.result().to(self._device, non_blocking=True)

            reading = deque(reader.submit(pinned, index_B) for index_B in itertools.islice(indices, _AHEAD))
            coming = copied(reading.popleft()) if reading else None
            while coming is not None:
                reading.extend(reader.submit(pinned, index_B) for index_B in itertools.islice(indices, 1))
                current.wait_stream(beside)
                rows, coming = coming, copied(reading.popleft()) if reading else None
                rows.record_stream(current)
                yield rows

    def _read(self, index_B: Tensor) -> Tensor:
        return torch.from_numpy(self._array[index_B.cpu().numpy()])
