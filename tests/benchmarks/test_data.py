"""The benchmark of a trial's data runs small on the demo's images."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_data_times_an_epoch_and_warm_starts(demo, category, tmp_path):
    small = f"--root {demo} --category {category} --image-size 64 --repeats 1 --starts 1 --parts epoch warm"
    command = [sys.executable, ROOT / "benchmarks/data.py", *small.split(), "--output", tmp_path / "data.txt"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert (tmp_path / "data.txt").read_text() == printed
    median = {line[:44].strip(): line[44:].split()[0] for line in printed.splitlines() if len(line) > 60}
    starts = ("a trial's arrays", "and its batches", "and one batch")
    arrays, batches, drawn = (float(next(median[k] for k in median if k.startswith(start))) for start in starts)
    assert 0 < arrays <= batches <= drawn
    assert float(median["from the memory map"]) > 0 and float(median["DataLoader, 2 workers"]) > 0
