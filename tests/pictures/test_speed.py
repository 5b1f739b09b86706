"""The picture of worth against time: it grows with the sweep, and draws what is only one point or none."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from msad.pictures.speed import save_speed
from msad.tracking.speed import COLUMNS


def table(categories, trials, budget=None):
    rows = [
        {
            "category": f"c{index}",
            "architecture": f"a{trial % 9}",
            "trial": f"{trial:04d}",
            "validation_score": trial / 9,
        }
        | {"latency_ms": 4.0 * 1.5**trial, "front": trial % 2 == 0, "best": trial == 1, "run_id": "r"}
        for index in range(categories)
        for trial in range(trials)
    ]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    frame.attrs["latency_budget"] = budget
    return frame


def drawn(frame, path):
    save_speed(frame, path)
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


@pytest.mark.parametrize("categories", [1, 4])
def test_picture_grows_with_the_categories(categories, tmp_path):
    height, width, _ = drawn(table(categories, 6), tmp_path / "new" / "speed.png").shape
    assert width > 140 * 4 * min(3, categories) and height > 140 * 3.3 * (1 + (categories > 3))


def test_picture_shows_the_budget(tmp_path):
    without, with_budget = (drawn(table(1, 6, budget), tmp_path / f"{budget}.png") for budget in (None, 12.0))
    assert without.shape != with_budget.shape or (without != with_budget).any()


@pytest.mark.parametrize("categories", [0, 2])
def test_picture_of_one_trial_or_none_is_drawn(categories, tmp_path):
    assert drawn(table(categories, 1), tmp_path / "speed.png").std() > 5
