"""Bars with the time left for what takes long, on the error output; nothing where that is no terminal.

Colours and redrawing are rich's: it leaves colours away for NO_COLOR, and here nothing is redrawn for TERM=dumb.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

Item = TypeVar("Item")
POLL_SECONDS = 0.2


def redraws(console: Console) -> bool:
    """Return whether lines can be drawn over: a terminal, and none that calls itself dumb."""
    return console.is_terminal and not console.is_dumb_terminal


def track(items: Sequence[Item], description: str) -> Iterator[Item]:
    """Yield the items and show how many are done."""
    progress = bar()
    with progress:
        yield from progress.track(items, description=description)


@contextmanager
def reading_files(description: str, expected: int = 0) -> Iterator[None]:
    """Show the progress of every pass over files in the block, as one bar.

    Passes become known one by one; `expected` is how many files there are in all, where that can be told before.
    """
    from msad.data_io.parallel import watched_by

    progress = bar()
    task, announced = progress.add_task(description, total=max(expected, 1)), 0

    def watch(results: Iterator[Any], count: int) -> Iterator[Any]:
        nonlocal announced
        announced += count
        progress.update(task, total=max(expected, announced))
        with progress:
            for result in results:
                yield result
                progress.advance(task)

    with watched_by(watch):
        yield


@contextmanager
def filling(folder: Path, size: int, description: str) -> Iterator[None]:
    """Show how many of `size` bytes have arrived in a folder."""
    progress, done = bar(in_bytes=True), threading.Event()
    task = progress.add_task(description, total=size)

    def watch() -> None:
        while not done.wait(POLL_SECONDS):
            progress.update(task, completed=size_of(folder))

    watcher = threading.Thread(target=watch, daemon=True)
    with progress:
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()


def count_files(folder: Path, most: int = 500_000) -> int:
    """Return how many files are below a folder; it stops counting where counting itself would take long."""
    return sum(path.is_file() for path in itertools.islice(folder.rglob("*"), most))


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder; what vanishes meanwhile counts nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def bar(in_bytes: bool = False) -> Progress:
    """Return a bar that counts files or bytes and says how long it will take; to be used as a context manager."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    count = DownloadColumn() if in_bytes else MofNCompleteColumn()
    columns = TextColumn("{task.description}"), BarColumn(), count, TimeRemainingColumn(), TextColumn("left")
    return Progress(*columns, console=console, transient=True, disable=not redraws(console))
