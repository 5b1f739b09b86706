"""The benchmark of training runs small: every side trains, ours with what stands in for a validation."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_training_prints_the_rate_of_every_side(demo, own_cache):
    small = "--image-size 32 --images 4 --epochs 2 --reference-images 8 --rounds 1 --threads 1"
    place = ["--root", demo, "--category", "gear", "--cache", own_cache]
    command = [sys.executable, ROOT / "benchmarks/training.py", *place, *small.split()]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    table = printed.rpartition("GFLOP\n")[2]
    rates = {name: float(rate) for name, rate in re.findall(r"^(\S.*?) {2,}([\d.]+) ", table, re.MULTILINE)}
    ours, theirs = {"ours", "ours, torch alone", "ours, same arithmetic"}, {"reference", "reference, network"}
    assert ours | theirs <= rates.keys() and min(rates.values()) > 0
