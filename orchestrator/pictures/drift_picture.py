"""Predictions over time as one picture: alarms, scores and plain statistics, beside what the held-out images had."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from msad.bundle.drift import ALARMS, SCORE
from msad.data_io.image_statistics import STATISTICS
from msad.pictures.palette import BLUE, ERROR_TEXT, GREY, drawable, save_figure

if TYPE_CHECKING:
    from msad.bundle.drift_history import History

UNITS = {"brightness": "grey level", "contrast": "grey levels", "sharpness": "gradient", "noise": "grey levels"}


def save_drift(history: History, path: Path) -> None:
    """Draw a panel each for alarms, scores and statistics: a window's median and its middle 90 % of images.

    The band is the middle 90 % of the held-out images; what has left what it was is marked and named.
    """
    windows = history.windows
    panels = (ALARMS, SCORE, *STATISTICS)
    size = max(7.0, min(16.0, 4 + 0.35 * len(windows))), 1.4 * len(panels) + 0.6
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    all_axes = figure.subplots(len(panels), 1, sharex=True)
    place = np.arange(len(windows))
    for axes, name in zip(all_axes, panels, strict=True):
        if name == ALARMS:
            middle = np.array([100 * one.alarms for one in windows])
            axes.bar(place, middle, width=0.6, color=BLUE)
            axes.set_ylabel("alarms, %")
            axes.set_ylim(0, max(5.0, 1.3 * middle.max()))
        else:
            low, middle, high = (
                np.array([np.quantile(one.values[name], share) for one in windows]) for share in (0.05, 0.5, 0.95)
            )
            axes.axhspan(*np.quantile(history.held_out[name], (0.05, 0.95)), color=GREY, alpha=0.18, lw=0)
            axes.axhline(np.median(history.held_out[name]), color=GREY, lw=1)
            axes.errorbar(place, middle, [middle - low, high - middle], fmt="o-", color=BLUE, ms=4, lw=1, capsize=2)
            axes.set_ylabel(f"{name}\n{UNITS[name]}" if name in UNITS else name)
            if name == SCORE:
                axes.axhline(history.threshold, color=ERROR_TEXT, lw=1, ls="--")
            axes.margins(y=0.25)
        for index, one in enumerate(windows):
            if any(finding.name == name for finding in one.findings):
                axes.plot(index, middle[index], "s", ms=11, mfc="none", mec=ERROR_TEXT, mew=2, clip_on=False)
    all_axes[-1].yaxis.set_major_formatter(EngFormatter())
    figure.align_ylabels(all_axes)
    step = math.ceil(len(windows) / size[0])  # about an inch for each
    labels = [f"{one.first:%Y-%m-%d}\n{one.first:%H:%M}" for one in windows[::step]]
    all_axes[-1].set_xticks(place[::step], labels)
    all_axes[-1].set_xlim(-0.6, len(windows) - 0.4)
    held_out = len(history.held_out[STATISTICS[0]])
    figure.suptitle(
        f"{drawable(history.source)}\nband: middle 90 % of {held_out} held-out good images; squares: has left it "
        f"(false alarms in all: {history.rate:.3g})",
        fontsize=10,
    )
    save_figure(figure, path)
