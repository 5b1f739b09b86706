"""Memory that a network frees is kept for its next step.

glibc asks the system anew for every block above 32 MiB and gives it back as soon as it is freed. An activation of that
size then consists of fresh pages in every step, each of which the system must find and clear: on a CPU that takes
longer than most layers that compute in it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os

_MOST = 2**31 - 1  # a C int
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
# Threads would have heaps of their own, which hold no large block; Ray runs a job in a thread.
CHILDREN = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(_MOST), "MALLOC_TRIM_THRESHOLD_": str(_MOST)}


def keep_freed_memory() -> None:
    """Keep what is freed: in the main thread of this process, and anywhere in those that it starts from now on.

    Variables of these names that a user has set stay as they are. Nothing happens with another C library than glibc.
    """
    for name, value in CHILDREN.items():
        os.environ.setdefault(name, value)
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _MOST)
        mallopt(_TRIM_THRESHOLD, _MOST)
