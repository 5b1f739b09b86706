"""Pictures of a study, drawn from its record: how the search went, what it tried, what mattered, what it was worth.

`optuna.visualization.matplotlib` has three of the four. It draws through pyplot, whose global state a thread of a sweep
must not touch, in the style `ggplot` (a grey ground, red and blue of its own), and its parallel coordinates stand
upright, so that fourteen names such as `loss_weights/ssim` do not fit. Hence these; the importance itself is Optuna's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from msad.pictures.palette import BLUE, GREEN, GREY, ORANGE, VALUES, VERMILION, drawable, new_figure, save_figure
from msad.search.selection import report_selection

LIGHT = "#D0D0D0"
WIDTH = 7.6


def save_study_pictures(record: Mapping[str, Any], directory: Path) -> list[Path]:
    """Write `history.png`, `parallel.png`, `importance.png`, and `validation_test.png` where trials were tested.

    Parameters
    ----------
    record
        What `study_record.describe_search` returned.
    directory
        A folder, which is made.

    Returns
    -------
    list of Path
        The files. Where there is too little to draw, the picture says so.
    """
    pictures = {"history": save_history, "parallel": save_parallel, "importance": save_importance}
    if any(trial["test"] for trial in record["trials"]):
        pictures["validation_test"] = save_validation_test
    files = []
    for name, save in pictures.items():
        files.append(directory / f"{name}.png")
        save(record, files[-1])
    return files


def save_history(record: Mapping[str, Any], path: Path) -> None:
    """Draw every trial's value in the order of their numbers, and the best so far."""
    trials = pd.DataFrame(record["trials"], columns=["number", "state", "value"]).astype({"value": float})
    figure = new_figure(WIDTH, 3.9)
    axes = figure.subplots()
    states = ("complete", "pruned", "failed", "too_slow")
    complete, pruned, failed, too_slow = (trials[trials["state"] == state] for state in states)
    if len(complete):
        best = complete["value"].cummax()
        ends = [*complete["number"], trials["number"].iloc[-1]], [*best, best.iloc[-1]]
        axes.step(*ends, where="post", color=GREY, label="best so far")
        axes.plot(complete["number"], complete["value"], "o", color=BLUE, label="complete")
    if len(pruned):
        label = "stopped early, at its last value"
        axes.plot(pruned["number"], pruned["value"], "v", color=ORANGE, markerfacecolor="white", label=label)
    if len(failed):
        bottom = axes.get_xaxis_transform()
        axes.plot(failed["number"], [0.03] * len(failed), "X", color=VERMILION, transform=bottom, label="failed")
    if len(too_slow):
        bottom, label = axes.get_xaxis_transform(), "too slow, not trained"
        axes.plot(too_slow["number"], [0.03] * len(too_slow), "x", color=GREY, transform=bottom, label=label)
    if record["chosen"] is not None:
        value = trials.set_index("number").loc[record["chosen"], "value"]
        axes.plot(record["chosen"], value, "*", color=VERMILION, markersize=15, label=f"chosen: {value:.3f}")
    axes.set(xlabel="Trial", ylabel=_words(record["objective"]))
    axes.margins(y=0.12)
    _whole_numbers(axes)
    _legend_above(axes)
    _title(axes, record, "every trial of the search")
    save_figure(figure, path)


def save_parallel(record: Mapping[str, Any], path: Path) -> None:
    """Draw parallel coordinates: a row per searched parameter, most important first, a line through all per trial.

    Rows lie, so that their names can be read. A row is logarithmic where the parameter's range is, and a categorical
    one has its choices as places. Lines are darker the higher the objective; those of trials that were stopped early,
    failed or were too slow are grey.
    """
    shares, space = record["importance"]["shares"], record["space"]
    rows = sorted(space, key=lambda name: -shares.get(name, 0))
    complete = [trial for trial in record["trials"] if trial["state"] == "complete"]
    figure = new_figure(WIDTH, 1.6 + 0.52 * (len(rows) + 1))
    axes = figure.subplots()
    if not rows or not complete:
        _say(axes, "nothing was searched" if complete else "no trial is complete")
    else:
        values = np.array([trial["value"] for trial in complete], float)
        low, high = _widened(values)
        places = {name: _Row(space[name]) for name in rows}
        order = np.argsort(values, kind="stable")
        heights = np.arange(len(rows) + 1)
        for trial in record["trials"]:
            if trial["state"] in ("pruned", "failed", "too_slow") and set(rows) <= set(trial["params"]):
                xs = [places[name].place(trial["params"][name]) for name in rows]
                axes.plot(xs, heights[1:], color=LIGHT, linewidth=1, zorder=1)
        lines = [
            np.column_stack(
                [
                    [(values[index] - low) / (high - low)]
                    + [places[name].place(complete[index]["params"][name]) for name in rows],
                    heights,
                ]
            )
            for index in order  # the best ones lie on top
        ]
        axes.add_collection(
            LineCollection(lines, colors=VALUES((values[order] - low) / (high - low)), linewidths=1.6, zorder=2)
        )
        best = lines[-1] if record["chosen"] is None else lines[_position(complete, order, record["chosen"])]
        axes.plot(*best.T, color=VALUES(1.0), linewidth=3, zorder=3)
        axes.plot(*best.T, "o", color=VERMILION, markersize=6, zorder=4, clip_on=False)
        axes.imshow(np.linspace(0, 1, 256)[None], cmap=VALUES, extent=(0, 1, -0.07, 0.07), aspect="auto", zorder=3)
        _row_labels(axes, 0, [0, 1], [f"{low:.3f}", f"{high:.3f}"])
        for height, name in enumerate(rows, start=1):
            axes.plot([0, 1], [height] * 2, color=GREY, linewidth=0.8, zorder=1)
            _row_labels(axes, height, *places[name].ticks())
        axes.set_yticks(heights, [_words(record["objective"]), *rows])
        axes.get_yticklabels()[0].set_weight("bold")
        axes.set(xlim=(-0.03, 1.03), ylim=(len(rows) + 0.45, -0.35), xticks=[])
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        note = "Dots: the chosen trial."
        if len(complete) < len(record["trials"]):
            note += " Grey: stopped early or failed."
        axes.set_title(note, fontsize=9, color=GREY, loc="left")
    _title(axes, record, "parallel coordinates")
    save_figure(figure, path)


def save_importance(record: Mapping[str, Any], path: Path) -> None:
    """Draw the share of the objective's variance that each parameter explains, or why that is not known."""
    found = record["importance"]
    shares = sorted(found["shares"].items(), key=lambda item: -item[1])
    figure = new_figure(WIDTH, 1.5 + 0.36 * max(len(shares), 3))
    axes = figure.subplots()
    if found["reason"]:
        _say(axes, found["reason"])
    else:
        names, values = zip(*shares, strict=True)
        axes.barh(range(len(names)), values, color=BLUE, height=0.7)
        for row, value in enumerate(values):
            axes.annotate(f"{value:.2f}", (value, row), (4, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(names)), names)
        axes.set(xlim=(0, 1.12 * max(values)), ylim=(len(names) - 0.5, -0.5), xlabel="Share of the variance explained")
        axes.tick_params(axis="y", length=0)
        axes.set_title(
            f"By {found['evaluator']}, over {found['trials']} complete trials", fontsize=9, color=GREY, loc="left"
        )
    _title(axes, record, "parameter importance")
    save_figure(figure, path)


def save_validation_test(record: Mapping[str, Any], path: Path, figure_name: str = "image_auroc") -> None:
    """Draw each tested trial's validation value against its test figure, with the chosen trial and the best on test."""
    rows = [
        {"number": trial["number"], "validation": trial["value"], figure_name: trial["test"][figure_name]}
        for trial in record["trials"]
        if trial["state"] == "complete" and trial["test"]
    ]
    table = pd.DataFrame(rows, columns=["number", "validation", figure_name]).astype(float)
    report = report_selection(table, figure_name)
    known = table.dropna()
    figure = new_figure(WIDTH, 4.6)
    axes = figure.subplots()
    if not len(known):
        _say(axes, "no trial has both figures")
        _title(axes, record, "validation against test")
        save_figure(figure, path)
        return
    axes.plot(known["validation"], known[figure_name], "o", color=BLUE, alpha=0.75)
    axes.axhline(report.random_mean, linestyle=":", color=GREY, label=f"a random choice: {report.random_mean:.3f}")
    oracle = known.loc[known[figure_name].idxmax()]
    axes.plot(
        oracle["validation"],
        oracle[figure_name],
        "D",
        markersize=13,
        markerfacecolor="none",
        markeredgewidth=2,
        color=GREEN,
        label=f"best on test: {report.oracle:.3f}",
    )
    chosen = known[known["number"] == record["chosen"]]
    if len(chosen):
        axes.plot(
            chosen["validation"],
            chosen[figure_name],
            "*",
            color=VERMILION,
            markersize=15,
            label=f"chosen by validation: {report.chosen:.3f}",
        )
    axes.set(xlabel=f"{_words(record['objective'])} (decided)", ylabel=f"Test: {_words(figure_name)} (only reported)")
    axes.margins(0.08)
    _legend_above(axes)
    rank = "too few or equal values to rank" if math.isnan(report.spearman) else f"Spearman ρ {report.spearman:.2f}"
    _title(axes, record, f"validation against test, {report.trials} trials: {rank}")
    save_figure(figure, path)


class _Row:
    """Where a parameter's values lie between 0 and 1."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._choices = values.get("choices")

    def place(self, value: Any) -> float:
        if self._choices is not None:
            index = next(i for i, choice in enumerate(self._choices) if choice == value and type(choice) is type(value))
            return (index + 0.5) / len(self._choices)
        low, high, value = (self._scale(v) for v in (self._values["low"], self._values["high"], value))
        return (value - low) / (high - low) if high > low else 0.5

    def ticks(self) -> tuple[list[float], list[str]]:
        if self._choices is not None:
            return [self.place(choice) for choice in self._choices], [str(choice) for choice in self._choices]
        low, high = self._values["low"], self._values["high"]
        inside = []
        if self._values["log"]:
            inside = [10.0**power for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
        elif self._values["kind"] == "int" and high - low <= 6:
            inside = list(range(low, high + 1))
        inside = [value for value in inside if 0.12 < self.place(value) < 0.88]
        ticks = [low, *inside, *([high] if high > low else [])]
        return [self.place(tick) for tick in ticks], [f"{tick:g}" for tick in ticks]

    def _scale(self, value: float) -> float:
        return math.log(value) if self._values["log"] else value


def _row_labels(axes: Axes, height: float, places: Sequence[float], labels: Sequence[str]) -> None:
    for place, label in zip(places, labels, strict=True):
        axes.plot([place] * 2, [height - 0.05, height + 0.05], color=GREY, linewidth=0.8, zorder=1)
        text = axes.text(place, height + 0.12, label, ha="center", va="top", fontsize=8, zorder=5)
        text.set_bbox({"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6})


def _position(complete: Sequence[Mapping[str, Any]], order: np.ndarray, number: int) -> int:
    return next(place for place, index in enumerate(order) if complete[index]["number"] == number)


def _widened(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _words(metric: str) -> str:
    words = metric.replace("_", " ").replace("auroc", "AUROC").replace("pixel ap", "pixel AP")
    return words[0].upper() + words[1:]


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", wrap=True, transform=axes.transAxes)
    axes.set_axis_off()


def _title(axes: Axes, record: Mapping[str, Any], text: str) -> None:
    category, _, architecture = record["study"].rpartition("/")
    axes.figure.suptitle(f"{drawable(category)}, {architecture}: {text}")


def _legend_above(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, borderaxespad=0.2, columnspacing=1.2
        )


def _whole_numbers(axes: Axes) -> None:
    axes.xaxis.get_major_locator().set_params(integer=True)
