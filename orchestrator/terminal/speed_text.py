"""The best of each category within a budget of time, in words."""

from __future__ import annotations

import pandas as pd


def format_speed(frame: pd.DataFrame) -> str:
    """Say which trial of each category is the best within the budget, and how to fetch it.

    Parameters
    ----------
    frame
        What `msad.tracking.speed.speed_table` returned.
    """
    if frame.empty:
        return "no trial has both a validation score and a latency"
    budget = frame.attrs["latency_budget"]
    lines = [f"Best by validation score{'' if budget is None else f' within {budget:g} ms per image'}:"]
    for category, rows in frame.groupby("category"):
        best = rows[rows["best"]]
        if best.empty:
            quickest = rows.loc[rows["latency_ms"].idxmin()]
            lines.append(f"{category}: none; the quickest is {_words(quickest)}")
        else:
            lines.append(f"{category}: {_words(best.iloc[0])}: msad pull {best.iloc[0]['run_id']} --to DIR")
    return "\n".join(lines)


def _words(row: pd.Series) -> str:
    trial = f" trial {row['trial'][-4:]}" if row["trial"] else ""
    return f"{row['architecture']}{trial}, {row['validation_score']:.3f}, {row['latency_ms']:.1f} ms"
