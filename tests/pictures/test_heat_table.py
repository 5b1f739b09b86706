"""The heat table of a sweep, and the palette's promise that its numbers can be read."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from msad.pictures.heat_table import means, save_heat_table
from msad.pictures.palette import BLUE, ERROR_TEXT, GREY, contrast, value_colours


def board(categories, architectures, **changes):
    """A leaderboard as the heat table needs it."""
    rows = []
    for i, category in enumerate(categories):
        for j, architecture in enumerate(architectures):
            score = 0.5 + 0.03 * i + 0.01 * j
            rows.append(
                {
                    "category": category, "architecture": architecture, "status": "complete", "best": j == 0,
                    "validation_score": score, "image_auroc": score + 0.2, "aupro_30": score - 0.1,
                }
            )  # fmt: skip
    return pd.DataFrame(rows).assign(**changes)


@pytest.mark.parametrize(("categories", "architectures"), [(1, 1), (2, 2), (15, 4), (3, 9)])
def test_save_heat_table_grows_with_the_sweep(categories, architectures, tmp_path):
    frame = board([f"category_{n}" for n in range(categories)], [f"kind_{n}" for n in range(architectures)])
    save_heat_table(frame, tmp_path / "new" / "heat.png")
    with Image.open(tmp_path / "new" / "heat.png") as picture:
        width, height = picture.size
        assert np.asarray(picture.convert("L")).std() > 5
    assert width > 140 * 3 * 0.9 * architectures and height > 140 * 0.3 * categories


def test_save_heat_table_draws_sweeps_with_gaps_and_without_studies(tmp_path):
    frame = board(["a", "b"], ["x", "y"])
    frame.loc[1, ["image_auroc", "aupro_30"]], frame.loc[1, "status"] = math.nan, "running"
    save_heat_table(frame.drop(index=2), tmp_path / "gaps.png")
    save_heat_table(frame[:0], tmp_path / "none.png")
    assert (tmp_path / "gaps.png").stat().st_size > (tmp_path / "none.png").stat().st_size > 0


def test_means_are_over_all_categories_or_unknown():
    frame = board(["a", "b"], ["x", "y"])
    assert means(frame, "validation_score") == {"x": pytest.approx(0.515), "y": pytest.approx(0.525)}
    frame.loc[3, "validation_score"] = math.nan
    assert math.isnan(means(frame, "validation_score")["y"]) and means(frame.drop(index=2), "image_auroc")["y"] > 0
    assert math.isnan(means(frame.drop(index=2), "image_auroc")["x"])


def test_text_on_every_colour_of_the_scale_has_enough_contrast():
    pairs = [value_colours(value, 0.0, 1.0) for value in np.linspace(0, 1, 101)]
    assert min(contrast(text, ground) for ground, text in pairs) >= 4.5
    assert pairs[0][1] == "#000000" and pairs[-1][1] == "#ffffff"


def test_equal_values_have_a_colour():
    assert value_colours(0.7, 0.7, 0.7) == value_colours(1.0, 0.0, 1.0)


def test_contrast_is_wcags():
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # the well-known grey that just fails
    assert min(contrast(colour, "#ffffff") for colour in (BLUE, GREY, ERROR_TEXT)) >= 4.5
