"""One precision for judging and for delivering: maps, scores and thresholds are float32 in full, wherever made.

A threshold often is a held-out image's own score. It holds on the line only if that image scores the same there; with
convolutions in TF32 (ten bits of mantissa, what cuDNN does unless it is told not to) or under somebody's autocast, maps
differ in the third digit.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

_lock = threading.Lock()
_inside = 0
_before: list[tuple[Callable[[Any], None], Any]] = []


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Compute float32 as float32: no autocast, no TF32 or bfloat16 inside of convolutions and products.

    Torch keeps these settings for the whole process, not for a thread: they return to what they were when the last
    thread has left. Whoever trains beside it meanwhile is as precise as this, never less than he asked for. A graph
    that is exported has no such settings; it is left alone.
    """
    if torch.compiler.is_exporting():
        yield
        return
    _enter()
    try:
        with contextlib.ExitStack() as off:
            for device in filter(torch.is_autocast_enabled, ("cpu", "cuda")):
                off.enter_context(torch.autocast(device, enabled=False))
            yield
    finally:
        _leave()


def _enter() -> None:
    global _inside
    with _lock:
        if not _inside:
            for read, write, exact in _SWITCHES:
                # Torch refuses to read an old switch whose new ones differ: then those alone are turned.
                with contextlib.suppress(RuntimeError):
                    if (value := read()) not in exact:
                        write(exact[0])
                        _before.append((write, value))
        _inside += 1


def _leave() -> None:
    global _inside
    with _lock:
        _inside -= 1
        while not _inside and _before:
            write, value = _before.pop()
            write(value)


def _switch(owner: Any, name: str, *exact: Any) -> tuple[Callable[[], Any], Callable[[Any], None], tuple[Any, ...]]:
    return functools.partial(getattr, owner, name), functools.partial(setattr, owner, name), exact


_SWITCHES = [
    _switch(torch.backends.cudnn, "allow_tf32", False),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, ("highest",)),
    *(
        _switch(operation, "fp32_precision", "ieee", "none")
        for operation in (
            torch.backends.cudnn.conv,
            torch.backends.cuda.matmul,
            torch.backends.mkldnn.conv,
            torch.backends.mkldnn.matmul,
        )
    ),
]
"""How to read, how to write, and what is exact: the old switches first, which turn several of the new ones."""
