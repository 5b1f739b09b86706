"""One thread pool for reading and decoding files (all of which release the interpreter's lock)."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Watcher = Callable[[Iterator[Any], int], Iterator[Any]]

_WATCHER: ContextVar[Watcher | None] = ContextVar("watcher", default=None)

_AHEAD = 64  # twice the most threads of a pool


def thread_pool() -> ThreadPoolExecutor:
    """Return a pool of the usual size for reading, decoding and writing files."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Twice the cores: on network storage half of the threads wait for bytes while the others decode.
    return ThreadPoolExecutor(max_workers=min(32, 2 * cores))


def map_in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield `function(item)` for every item, in the order of the items, several at a time.

    Only some results are made ahead of the one asked for, so that memory does not grow with the number of items.
    """
    if (watcher := _WATCHER.get()) is None:
        yield from _map(function, items)
    else:
        known = list(items)
        yield from watcher(_map(function, known), len(known))


@contextmanager
def watched_by(watcher: Watcher) -> Iterator[None]:
    """Pass the results of every `map_in_threads` in the block through `watcher(results, count)`, to show progress."""
    token = _WATCHER.set(watcher)
    try:
        yield
    finally:
        _WATCHER.reset(token)


def _map(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    running: deque[Future[Result]] = deque()
    with thread_pool() as pool:
        for item in items:
            running.append(pool.submit(function, item))
            if len(running) > _AHEAD:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
