"""The overhead benchmark's arithmetic, on landmarks as a sweep leaves them."""

from __future__ import annotations

import subprocess
import sys

from benchmarks import overhead, overhead_probe


def landmark(name, time, processor_of_all=0.0, **values):
    return {"name": name, "time": time, "processor_of_all": processor_of_all, **values}


def test_time_beyond_training_is_what_lies_between_two_trials_without_the_training(monkeypatch, capsys, tmp_path):
    fit = {"seconds": 2.0, "processor_seconds": 1.5}
    marks = [
        landmark("suggested", 10, 5), landmark("fit", 17, **fit),
        landmark("suggested", 20, 9), landmark("fit", 22.5, **fit),
        landmark("searched", 23, 11),
    ]  # fmt: skip
    monkeypatch.setattr(overhead, "sweep", lambda *_words: marks)
    overhead.per_trial(tmp_path, tmp_path, "direct", 2)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    figures = {" ".join(words[: words.index("s") - 1]): float(words[words.index("s") - 1]) for words in lines}
    assert figures == {
        "training": 2.0,
        "beyond it, first trial": 8.0,
        "beyond it, each later trial": 1.0,
        "processor, first trial": 2.5,
        "processor, each later trial": 0.5,
    }


def test_first_landmark_of_each_name_is_kept():
    assert overhead.first([landmark("step", 1), landmark("step", 2)])["step"]["time"] == 1


def test_processor_time_of_all_includes_processes_that_have_ended():
    before = overhead_probe.processor_of_all()
    busy = "import time\nwhile time.process_time() < 0.5: pass"
    subprocess.run([sys.executable, "-c", busy], check=True)
    assert overhead_probe.processor_of_all() - before > 0.4
