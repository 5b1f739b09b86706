"""Large blocks that are freed and asked for again: how many fresh pages the system had to hand out for them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from msad.training.malloc import CHILDREN

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
PAGES = """
import resource, sys, threading
import numpy as np
def work():
    def make():
        return np.ones(80 << 20, np.uint8)
    make()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        make()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
KEEP = "from msad.training.malloc import keep_freed_memory\nkeep_freed_memory()\n"
IN_A_THREAD = "thread = threading.Thread(target=work)\nthread.start()\nthread.join()"


def pages(code: str, **more: str) -> int:
    """Return the pages that five blocks of 80 MiB took, one after the other, in a process of their own."""
    bare = {name: value for name, value in os.environ.items() if name not in CHILDREN}
    done = subprocess.run([sys.executable, "-c", code], env=bare | more, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_freed_blocks_are_returned_to_the_system_by_default():
    assert pages(PAGES + "work()") > 150  # huge pages of 2 MiB are 40 to a block


def test_freed_blocks_are_kept_in_the_main_thread():
    assert pages(PAGES + KEEP + "work()") < 50


def test_freed_blocks_are_kept_in_any_thread_of_a_child():
    assert pages(PAGES + IN_A_THREAD, **CHILDREN) < 50


def test_variables_of_the_user_stay():
    code = KEEP + "import os\nprint(os.environ['MALLOC_ARENA_MAX'])"
    assert pages(code, MALLOC_ARENA_MAX="4") == 4
