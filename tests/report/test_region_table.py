"""The table of regions: its order, what is left out of it, and what there is to say without masks."""

from __future__ import annotations

import math

import pandas as pd

from msad.report.region_table import MOST_IMAGES, region_table

METRICS = {"test_false_regions": 0.25, "test_defect_regions": 8.0, "test_found_regions": 6.0}


def regions(outcomes, each=1):
    rows = [
        {
            "path": f"test/kind/{number:03}.png", "defect_type": "kind", "outcome": outcome, "region": part + 1,
            "x": 1, "y": 2, "width": 3, "height": 4, "area": 100 + number - part, "peak": 2.0, "mean": 1.5,
            "on_defect": math.nan,
        }
        for number, outcome in enumerate(outcomes)
        for part in range(each)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_images_that_teach_most_come_first_and_each_shows_its_largest_regions():
    table = region_table(regions(["hit", "correct rejection", "miss", "hit", "false positive"], each=5), METRICS)
    shown = [(rows[0]["image"], [row["area"] for row in rows]) for rows in table["images"]]
    assert shown == [
        (f"kind/{number:03}.png", [100 + number - part for part in range(3)]) for number in (4, 2, 3, 0, 1)
    ]
    assert table["more"] == 0
    assert table["summary"] == "0.25 per good image; 6 of 8 regions of the ground truth touched by one"


def test_images_beyond_the_most_are_counted():
    table = region_table(regions(["hit"] * (MOST_IMAGES + 7)), METRICS)
    assert len(table["images"]) == MOST_IMAGES and table["more"] == 7


def test_what_is_not_known_is_not_said():
    assert region_table(None, METRICS) is None and region_table(regions([]), METRICS) is None
    nothing = {"test_false_regions": math.nan, "test_defect_regions": 0.0, "test_found_regions": 0.0}
    assert region_table(regions(["hit"]), nothing)["summary"] == ""
