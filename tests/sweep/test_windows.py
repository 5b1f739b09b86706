"""Killed between any two writes, a sweep that goes on differs in nothing from one that was never disturbed.

The table of the windows is in docs/faults.md; `killed.py` makes them. What is compared is what the sweep's folder has,
and what MLflow has: runs, metrics at each step, tags, artifacts, models and registered versions, nothing twice.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.breakable import environment

# A trial's: its checkpoint, and nobody has heard of it (it ended without a result once). A winner's: a bundle with half
# its figures. In MLflow: a model that is all but finished (it stayed, beside another); an alias that was set and never
# said why.
OFTEN = (
    r"commit INSERT INTO trial_intermediate|rename .*final/bundle/bundle.json|"
    r"commit UPDATE logged_models|commit DELETE FROM model_version_tags"
)


def sweeps(folder: Path, demo: Path, own_cache: Path, *asked: str) -> dict[str, Any]:
    """Return what `killed.py` says of the windows that are asked for."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.killed", str(folder), str(demo), str(own_cache), *asked],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def differences(first: Any, second: Any, at: str = "") -> Iterator[str]:
    """Name the places in which two outcomes differ, but for the time of a prediction and the last digits of a sum."""
    if isinstance(first, dict) and isinstance(second, dict):
        for name in sorted({*first, *second} - {"latency_ms"}):
            if name in first and name in second:
                yield from differences(first[name], second[name], f"{at}/{name}")
            else:
                yield f"{at}/{name} is {'gone' if name in first else 'new'}"
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        for number, values in enumerate(zip(first, second, strict=True)):
            yield from differences(*values, f"{at}/{number}")
    elif isinstance(first, float) and isinstance(second, float):
        if not math.isclose(first, second, rel_tol=1e-6, abs_tol=1e-9):
            yield f"{at}: {first} and {second}"
    elif first != second:
        yield f"{at}: {first!s:.300} and {second!s:.300}"


def check(told: dict[str, Any], windows: int) -> None:
    killed = [(part, name, end) for part, of in told.items() for name, end in of["killed"].items()]
    assert len(killed) >= windows
    wrong = []
    for part, name, end in killed:
        if end["ends"] != [-9, 0]:
            wrong.append(f"{part} {name}: the first process ended with {end['ends'][0]}, the second {end['ends'][1]}")
        else:
            found = list(differences(told[part]["whole"], end["outcome"]))
            wrong += [f"{part} {name}: {'; '.join(found[:5])}"] if found else []
    assert not wrong, "\n".join(wrong)


def test_sweep_killed_where_much_was_lost_equals_the_undisturbed_one(demo, own_cache, tmp_path):
    told = sweeps(tmp_path, demo, own_cache, OFTEN)
    assert told["search"]["whole"]["winner"]["learning_rate"] > 0
    delivered = told["delivery"]["whole"]
    assert len(delivered["runs"]) == 4 and len(delivered["models"]) == 3  # the sweep, a study, two trials
    assert delivered["registered"][0]["aliases"] == {"champion": "1"}
    assert told["challenge"]["whole"]["registered"][0]["aliases"] == {"champion": "2"}
    check(told, 4)


@pytest.mark.slow
@pytest.mark.parametrize(("parts", "windows"), [("search,final", 140), ("delivery", 170), ("challenge", 10)])
def test_sweep_killed_between_any_two_writes_equals_the_undisturbed_one(demo, own_cache, tmp_path, parts, windows):
    check(sweeps(tmp_path, demo, own_cache, "all", parts), windows)
