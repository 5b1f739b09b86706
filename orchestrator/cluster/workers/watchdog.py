"""A job that hangs is ended by its own process, with a record of where it hung.

Neither Ray Tune nor Ray Train notices a training function that never reports again: a stopping criterion is looked at
when a result comes, a health check asks whether the process answers. The timer here is Python's `faulthandler`, a
thread in C that needs no interpreter lock, so code that holds the lock for ever is ended as well. To Ray it looks like
any other crash.
"""

from __future__ import annotations

import contextlib
import faulthandler
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOTE = "hung.txt"  # in the job's folder


class Watchdog:
    """Ends this process when a job has not reported for so many minutes; use as a context manager.

    Parameters
    ----------
    note
        Where the stack of every thread is written before the process ends; removed when the job ends by itself.
    minutes
        The longest time without a report; 0 watches nothing. Time in which the machine sleeps does not count.
    """

    _owner: Watchdog | None = None  # a process has one timer: a job that ends late must not stop its successor's

    def __init__(self, note: Path, minutes: float) -> None:
        self._note, self._seconds = note, minutes * 60

    def __enter__(self) -> Watchdog:
        if self._seconds:
            self._note.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._note.open("w")
            self._arm()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._seconds:
            self._disarm()
            self._file.close()
            self._note.unlink(missing_ok=True)

    @contextmanager
    def reporting(self, *, watched: bool = False) -> Iterator[None]:
        """Stand still while a report is handed over, or, where it is `watched`, begin anew for it. Then begin anew."""
        self._disarm()
        if self._seconds and watched:
            self._arm()
        yield
        if self._seconds:
            self._arm()

    def _disarm(self) -> None:
        if Watchdog._owner is self:
            faulthandler.cancel_dump_traceback_later()

    def _arm(self) -> None:
        Watchdog._owner = self
        faulthandler.dump_traceback_later(self._seconds, exit=True, file=self._file)


def hung_at(note: Path) -> str | None:
    """Return where the process that wrote a note hung, as `FUNCTION (FILE:LINE)`; None where none did."""
    text = ""
    with contextlib.suppress(FileNotFoundError):
        text = note.read_text()
    if not text.startswith("Timeout"):
        return None
    stacks = re.split(r"\n(?=(?:Current thread|Thread) 0x)", text)
    job = next((stack for stack in stacks if "job_worker.py" in stack), stacks[-1])
    frame = re.search(r'File "(.*)", line (\d+) in (\S+)', job)
    return f"{frame[3]} ({Path(frame[1]).name}:{frame[2]})" if frame else "an unknown place"
