"""Bars are drawn on a terminal and nowhere else."""

from __future__ import annotations

import io
import re
import sys
import time

import pytest

from msad.data_io.parallel import map_in_threads
from msad.progress import filling, reading_files, size_of, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Return a function that makes the error output a terminal of 80 columns, and returns what reads it.

    To be called in the test: pytest puts its own error output in place between a fixture and its test.
    """

    def terminal(**environment):
        for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {"TERM": "xterm-256color", "COLUMNS": "80", **environment}.items():
            monkeypatch.setenv(name, value)
        stream = Terminal()
        monkeypatch.setattr(sys, "stderr", stream)
        return stream.getvalue

    return terminal


def test_reading_shows_one_bar_for_all_passes_and_what_is_expected(terminal):
    shown = terminal()
    with reading_files("Checking", expected=5):
        first = list(map_in_threads(str, range(2)))
        second = list(map_in_threads(str, range(3)))
    assert (first, second) == (["0", "1"], ["0", "1", "2"])
    text = shown()
    assert "Checking" in text and "2/5" in text and "5/5" in text and "left" in text
    assert list(map_in_threads(str, range(2))) == ["0", "1"] and shown() == text  # the watching has ended


def test_reading_that_fails_passes_the_error_on(terminal):
    terminal()
    with pytest.raises(ZeroDivisionError), reading_files("Checking"):
        list(map_in_threads(lambda value: 1 / value, [1, 0]))
    assert list(map_in_threads(str, [1])) == ["1"]


def test_track_yields_everything_and_counts(terminal):
    shown = terminal()
    assert list(track(range(3), "Scoring")) == [0, 1, 2]
    assert "Scoring" in shown() and "3/3" in shown()


def test_filling_shows_the_bytes_that_have_arrived(terminal, tmp_path, monkeypatch):
    shown = terminal()
    monkeypatch.setattr("msad.progress.POLL_SECONDS", 0.01)
    with filling(tmp_path, 4000, "Pulling"):
        (tmp_path / "model").write_bytes(b"0" * 3000)
        deadline = time.monotonic() + 60
        while "3.0/4.0 kB" not in shown() and time.monotonic() < deadline:
            time.sleep(0.05)
    assert "3.0/4.0 kB" in shown()
    assert size_of(tmp_path) == 3000 and "Pulling" in shown()


def test_nothing_is_drawn_where_lines_cannot_be_drawn_over(terminal, monkeypatch, tmp_path):
    def work():
        with reading_files("Checking"), filling(tmp_path, 10, "Pulling"):
            assert list(track(list(map_in_threads(str, range(3))), "Scoring")) == ["0", "1", "2"]

    shown = terminal(TERM="dumb")
    work()
    assert shown() == ""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    work()
    assert sys.stderr.getvalue() == ""


def test_no_color_leaves_the_bar_without_colours(terminal):
    shown = terminal(NO_COLOR="1")
    list(track(range(2), "Scoring"))
    assert "2/2" in shown()
    assert not re.search(r"\x1b\[[0-9;]*(3[0-9]|4[0-9]|9[0-9])[;m]", shown())
