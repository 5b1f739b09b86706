"""A delivery that neither ends nor fails has a limit, at a sweep's end, on Ctrl-C, and at that of its process."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from msad.tracking.tracker import RunRecord, Tracker, hung
from msad.workspace import JobDirectory


@pytest.fixture
def answer():
    """Set, a delivery that hangs ends; it is at the end of a test, so that no thread is left."""
    answer = threading.Event()
    yield answer
    answer.set()
    for thread in threading.enumerate():
        if thread.name == "msad-tracking":
            thread.join(60)


@pytest.fixture
def waiting(client, experiment, tmp_path, answer):
    """A tracker whose first delivery hangs while it uploads, with another record behind it."""
    begun = threading.Event()

    def upload(*_words) -> None:
        begun.set()
        answer.wait()

    tracker = Tracker(client, experiment, print, upload)
    for name in ("first", "second"):
        words = {"kind": "trial", "title": name, "status": "failed", "directory": JobDirectory(tmp_path / name)}
        tracker.put(RunRecord(record_id=f"{tmp_path.name}-{name}", **words))
    assert begun.wait(60)
    return tracker


def test_delivery_that_hangs_is_given_up_and_counted(waiting):
    assert waiting.flush(60, silent=0.2) == 2
    assert waiting.close(60, silent=0.2) == 2 and hung()


def test_delivery_that_is_slow_is_waited_for(waiting, answer):
    threading.Timer(0.5, answer.set).start()
    assert waiting.close(0, silent=60) == 0


# An upload of MLflow's is in a thread that Python waits for at its end.
PROGRAM = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from msad.terminal import cli
from msad.tracking import tracker

def hang():
    pool = ThreadPoolExecutor()
    pool.submit(threading.Event().wait).result()

threading.Thread(target=hang, name=tracker.THREAD, daemon=True).start()
cli._main = lambda: (print("interrupted; nothing is lost"), sys.exit(130))
cli.main()
"""


def test_process_ends_although_an_upload_hangs():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (130, "interrupted; nothing is lost\n"), done.stderr
