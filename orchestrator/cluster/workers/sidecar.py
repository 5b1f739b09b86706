"""A process beside a worker whose folder is a copy: it outlives it, and sees to what a worker that died has left.

What a worker that hung has written about the place (`watchdog`) is uploaded, so that the next attempt, on whichever
node, knows; and its copy of the job's folder, which nobody reads any more, is removed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msad.cluster.workers.object_store import write_file
from msad.cluster.workers.watchdog import NOTE, hung_at


@contextmanager
def sidecar(copy: Path, store: str) -> Iterator[None]:
    """Start the process, and end it where the work in here ends in any way but the death of this process.

    `copy` is in a temporary folder of its own, `store` the address of what it is a copy of.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "msad.cluster.workers.sidecar", str(copy), store],
        stdin=subprocess.PIPE,  # which the system closes when this process is gone, however it went
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,  # not to be ended by what ends a group
    )
    try:
        yield
    finally:
        process.kill()
        process.communicate()


def main(copy: Path, store: str) -> None:
    """Wait for the worker's end, then upload where it hung and remove its copy."""
    sys.stdin.read()
    try:
        if hung_at(copy / NOTE):
            write_file(store, NOTE, (copy / NOTE).read_bytes())
    finally:
        shutil.rmtree(copy.parent, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
