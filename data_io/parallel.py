"""One thread pool for reading and decoding files (all of which release the interpreter's lock)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Watcher = Callable[[Iterator[Any], int], Iterator[Any]]

_WATCHER: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


def thread_pool() -> ThreadPoolExecutor:
    """Return a pool of the usual size for reading, decoding and writing files."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Twice the cores: on network storage half of the threads wait for bytes while the others decode.
    return ThreadPoolExecutor(max_workers=min(32, 2 * cores))


def map_in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield `function(item)` for every item, in the order of the items, several at a time."""
    items, watcher = list(items), _WATCHER.get()
    with thread_pool() as pool:
        results = pool.map(function, items)
        yield from watcher(results, len(items)) if watcher else results


@contextmanager
def watched_by(watcher: Watcher) -> Iterator[None]:
    """Pass the results of every `map_in_threads` in the block through `watcher(results, count)`, to show progress."""
    token = _WATCHER.set(watcher)
    try:
        yield
    finally:
        _WATCHER.reset(token)
