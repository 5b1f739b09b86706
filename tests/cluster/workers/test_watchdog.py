"""A process that hangs is ended, whatever holds it, and leaves word of where it was."""

from __future__ import annotations

import subprocess
import sys

from msad.cluster.workers.watchdog import Watchdog, hung_at

# A regular expression that backtracks for ever holds the interpreter's lock: no Python thread could end it.
HANG = """
import re, sys
from pathlib import Path
from msad.cluster.workers.watchdog import Watchdog

def backtrack():
    re.match(r"(a+)+$", "a" * 60 + "b")

with Watchdog(Path(sys.argv[1] + ".other"), 60) as other, Watchdog(Path(sys.argv[1]), 0.005) as own:
    other.__exit__()  # one that ends late must not disarm its successor
    with own.reporting():
        pass
    backtrack()
"""


def test_process_that_hangs_is_ended_and_tells_where(tmp_path):
    note = tmp_path / "hung.txt"
    done = subprocess.run([sys.executable, "-c", HANG, str(note)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "backtrack" in note.read_text()
    assert hung_at(note).endswith(")")


def test_job_that_ends_by_itself_leaves_no_word(tmp_path):
    note = tmp_path / "job" / "hung.txt"
    with Watchdog(note, 60) as watchdog:
        assert hung_at(note) is None, "an empty note says that it runs"
        with watchdog.reporting():
            pass
    assert not note.exists() and hung_at(note) is None


def test_no_limit_watches_nothing(tmp_path):
    with Watchdog(tmp_path / "hung.txt", 0) as watchdog, watchdog.reporting():
        assert not list(tmp_path.iterdir())
