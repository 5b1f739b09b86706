"""The regions of a study's test images as rows of a page: the images that teach most first, of each the largest few."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

OUTCOMES = ("false positive", "miss", "hit", "correct rejection")
MOST_IMAGES, MOST_REGIONS = 40, 3


def region_table(regions: pd.DataFrame | None, metrics: dict[str, float]) -> dict[str, Any] | None:
    """Return what a page shows of a study's regions; None where none are known.

    Parameters
    ----------
    regions
        `Evaluation.regions`.
    metrics
        Of the study's run.

    Returns
    -------
    dict
        `summary` in words; `images`, each a list of rows of its largest regions; `more`, the number of images left out.
    """
    if regions is None or regions.empty:
        return None
    by_image = [rows for _, rows in regions.groupby("path", sort=False)]
    by_image.sort(key=lambda rows: (OUTCOMES.index(rows["outcome"].iloc[0]), -rows["area"].iloc[0]))
    shown = by_image[:MOST_IMAGES]
    return {
        "summary": summary(metrics),
        "images": [[_row(row) for row in rows.head(MOST_REGIONS).to_dict("records")] for rows in shown],
        "more": len(by_image) - len(shown),
    }


def summary(metrics: dict[str, float]) -> str:
    """Say how many regions good images show, and of how many defects one was found."""
    false, defects, found = (
        metrics.get(f"test_{name}", math.nan) for name in ("false_regions", "defect_regions", "found_regions")
    )
    parts = [] if math.isnan(false) else [f"{false:.2f} per good image"]
    parts += [f"{found:.0f} of {defects:.0f} regions of the ground truth touched by one"] if defects > 0 else []
    return "; ".join(parts)


def _row(row: dict[str, Any]) -> dict[str, Any]:
    path = row["path"].replace("\\", "/").split("/")
    return {
        "image": "/".join(path[-2:]),
        "outcome": row["outcome"],
        "place": f"{row['x']}, {row['y']}",
        "size": f"{row['width']} × {row['height']}",
        "area": row["area"],
        **{name: row[name] for name in ("peak", "mean", "on_defect")},
    }
