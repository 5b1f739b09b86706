"""A sweep at a glance: a table of category × architecture, each figure as a number on its colour."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from msad.leaderboard_columns import Column, View, shown_in
from msad.pictures.palette import GREY, drawable, new_figure, save_figure, value_colours

EMPTY = "#EDEDED"


def save_heat_table(frame: pd.DataFrame, path: Path) -> None:
    """Draw some figures of every category × architecture, side by side.

    Parameters
    ----------
    frame
        What `compare.leaderboard` returned. The best of each category, by validation score, has a star in every panel.
        Each panel has colours of its own, from its lowest to its highest figure.
    path
        The PNG; folders are made.
    """
    categories, architectures = names(frame)
    rows = len(categories) + (len(categories) > 1)
    labels = [drawable(name) for name in categories]
    widest = max(map(len, labels), default=8)
    side = max(1.8, 0.95 * len(architectures))
    panels = shown_in(View.HEAT_TABLE)
    figure = new_figure(len(panels) * (side + 0.15) + 0.09 * widest + 0.4, 1.5 + 0.34 * max(1, rows))
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, column in zip(grid, panels, strict=True):
        if rows:
            _panel(axes, frame, column)
        else:
            axes.text(0.5, 0.5, "no study yet", ha="center", va="center")
            axes.set_axis_off()
        axes.set_title(column.full_title, fontsize=11)
    grid[0].set_yticks(range(rows), [*labels, *(["mean"] if len(categories) > 1 else [])])
    figure.suptitle("★ best of its category by validation score; darker is higher", fontsize=10, color=GREY)
    save_figure(figure, path)


def names(frame: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Return a leaderboard's categories and architectures, sorted: the rows and columns of its heat tables."""
    return sorted(frame["category"].unique()), sorted(frame["architecture"].unique())


def limits(frame: pd.DataFrame, column: str) -> tuple[float, float]:
    """Return the lowest and highest figure of a column, between which its colours lie; NaN without any."""
    return float(frame[column].min()), float(frame[column].max())


def means(frame: pd.DataFrame, column: str) -> dict[str, float]:
    """Return a figure's mean over all categories per architecture; NaN where one of them has none."""
    categories, architectures = names(frame)
    known = frame.set_index(["architecture", "category"])[column]
    return {
        name: float(known.reindex([(name, category) for category in categories]).mean(skipna=False))
        for name in architectures
    }


def _panel(axes: Axes, frame: pd.DataFrame, column: Column) -> None:
    categories, architectures = names(frame)
    low, high = limits(frame, column.name)
    for row in frame.to_dict("records"):
        place = architectures.index(row["architecture"]), categories.index(row["category"])
        value, star = row[column.name], " ★" if row["best"] else ""
        if math.isnan(value):
            _cell(axes, place, row["status"] if row["status"] != "complete" else "–", EMPTY, GREY, False)
        else:
            _cell(axes, place, f"{column.text(value)}{star}", *value_colours(value, low, high), bool(star))
    if len(categories) > 1:
        for name, mean in means(frame, column.name).items():
            _cell(axes, (architectures.index(name), len(categories)), column.text(mean, "–"), "white", "black", False)
    axes.set(xlim=(-0.5, len(architectures) - 0.5), ylim=(len(categories) + (len(categories) > 1) - 0.5, -0.5))
    axes.set_xticks(range(len(architectures)), [name.replace("_", "\n") for name in architectures])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _cell(axes: Axes, place: tuple[int, int], text: str, ground: str, ink: str, bold: bool) -> None:
    axes.add_patch(Rectangle((place[0] - 0.48, place[1] - 0.46), 0.96, 0.92, facecolor=ground, edgecolor="none"))
    weight = "bold" if bold else "normal"
    axes.text(*place, text, ha="center", va="center", color=ink, fontsize=10, weight=weight)
