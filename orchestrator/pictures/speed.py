"""What trials are worth against the time that an image takes by them, with the front that none of them beats."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from msad.pictures.palette import GREY, LINES, drawable, new_figure, save_figure

_COLUMNS, _WIDTH, _HEIGHT = 3, 4.2, 3.4  # panels side by side, inches of each
_MARKS = ("o", "s", "^", "D", "v", "P", "X")


def save_speed(frame: pd.DataFrame, path: Path) -> None:
    """Draw a panel for each category: a mark for each trial, a line along the front, a star on the best in budget.

    Parameters
    ----------
    frame
        What `msad.tracking.speed.speed_table` returned.
    path
        The PNG; folders are made.
    """
    categories, architectures = sorted(frame["category"].unique()), sorted(frame["architecture"].unique())
    columns = min(_COLUMNS, max(1, len(categories)))
    rows = -(-max(1, len(categories)) // columns)
    figure = new_figure(columns * _WIDTH + 0.4, rows * _HEIGHT + 0.5)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, category in zip(grid, categories, strict=False):
        _panel(axes, frame[frame["category"] == category], architectures, frame.attrs["latency_budget"])
        axes.set_title(drawable(category), fontsize=11)
    for axes in grid[max(1, len(categories)) :]:
        axes.set_axis_off()
    if categories:
        parts = [axes.get_legend_handles_labels() for axes in grid]
        known = {label: handle for handles, labels in parts for handle, label in zip(handles, labels, strict=True)}
        figure.legend(known.values(), known, loc="outside lower center", ncols=2 * columns, frameon=False)
    else:
        grid[0].text(0.5, 0.5, "no trial has both figures", ha="center", va="center")
    save_figure(figure, path)


def _panel(axes: Axes, rows: pd.DataFrame, architectures: list[str], budget: float | None) -> None:
    for index, name in enumerate(architectures):
        of_one = rows[rows["architecture"] == name]
        if len(of_one):
            look = {"color": LINES[index % len(LINES)], "marker": _MARKS[index % len(_MARKS)], "linestyle": "none"}
            axes.plot(of_one["latency_ms"], of_one["validation_score"], alpha=0.75, label=drawable(name), **look)
    front = rows[rows["front"]].sort_values("latency_ms")
    axes.step(front["latency_ms"], front["validation_score"], where="post", color=GREY, zorder=1, label="front")
    best = rows[rows["best"]]
    if len(best):
        label, look = "best" if budget is None else "best in the budget", {"color": "black", "markeredgecolor": "white"}
        axes.plot(best["latency_ms"], best["validation_score"], "*", markersize=15, zorder=3, label=label, **look)
    if budget is not None:
        axes.axvline(budget, color=GREY, linestyle="--", linewidth=1, label=f"budget, {budget:g} ms")
    axes.set(xscale="log", xlabel="ms per image", ylabel="Validation score")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    around = [*rows["latency_ms"], *([] if budget is None else [budget])]
    axes.set_xlim(min(around) / 1.4, max(around) * 1.4)
    axes.margins(y=0.12)
