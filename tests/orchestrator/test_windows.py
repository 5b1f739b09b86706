"""Killed between any two writes, a sweep that goes on differs in nothing from one that was never disturbed.

The table of the windows is in docs/faults.md; `killed.py` makes them.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.orchestrator.breakable import environment

# A trial's: the last epoch in progress.jsonl alone; its checkpoint, and nobody has heard of it (it ended without a
# result once); a bundle; a result that nobody has heard of. A winner's: half a result; a bundle with half its figures.
OFTEN = (
    r"rename .*0001/checkpoint.pt|commit INSERT INTO trial_intermediate|rename .*0001/bundle$|open .*0001/\.result|"
    r"commit INSERT INTO trial_values|rename .*final/result|rename .*final/bundle/bundle.json"
)


def sweeps(folder: Path, demo: Path, own_cache: Path, asked: str) -> dict[str, Any]:
    """Return what `killed.py` says of the windows that are asked for."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.orchestrator.killed", str(folder), str(demo), str(own_cache), asked],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def alike(first: Any, second: Any) -> bool:
    """Say whether two outcomes are the same, but for the time that a prediction took and the last digits of a sum."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(
            alike(value, second[name]) for name, value in first.items() if name != "latency_ms"
        )
    if isinstance(first, list):
        return len(first) == len(second) and all(map(alike, first, second))
    if isinstance(first, float):
        return math.isclose(first, second, rel_tol=1e-6, abs_tol=1e-9)
    return first == second


def check(told: dict[str, Any], windows: int) -> None:
    killed = [(part, name, end) for part, of in told.items() for name, end in of["killed"].items()]
    assert len(killed) >= windows
    wrong = []
    for part, name, end in killed:
        whole, outcome = told[part]["whole"], end["outcome"]
        if end["ends"] != [-9, 0]:
            wrong.append(f"{part} {name}: the first process ended with {end['ends'][0]}, the second {end['ends'][1]}")
        elif not alike(whole, outcome):
            parts = [key for key in whole if not alike(whole[key], outcome[key])]
            files = sorted(set(whole["files"]) ^ set(outcome["files"]))
            wrong.append(f"{part} {name}: {', '.join(parts)} differ {files}")
    assert not wrong, "\n".join(wrong)


def test_sweep_killed_where_much_was_lost_equals_the_undisturbed_one(demo, own_cache, tmp_path):
    told = sweeps(tmp_path, demo, own_cache, OFTEN)
    assert told["search"]["whole"]["winner"]["learning_rate"] > 0
    check(told, 7)


@pytest.mark.slow
def test_sweep_killed_between_any_two_writes_equals_the_undisturbed_one(demo, own_cache, tmp_path):
    check(sweeps(tmp_path, demo, own_cache, "all"), 100)
