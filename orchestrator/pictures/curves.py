"""Curves of a run: ROC and precision–recall, the scores of each defect type, and how training went."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from msad.bundle.map_scale import anchor
from msad.pictures.palette import BLUE, DASHES, GREY, LINES, VERMILION, drawable, new_figure, save_figure

if TYPE_CHECKING:  # A job draws its training curves from here, and must not even import what opens the test split.
    from msad.bundle.evaluation import Evaluation


def save_roc_and_pr(evaluation: Evaluation, path: Path) -> None:
    """Draw the ROC and precision–recall curves of the image scores, each with the threshold's point and chance level.

    Where the split holds only good or only defective images there is no curve, and the picture says so.
    """
    from sklearn.metrics import precision_recall_curve, roc_curve

    labels, scores = evaluation.scores["label"].to_numpy(), evaluation.scores["score"].to_numpy()
    figure = new_figure(7.6, 4.7)
    roc, pr = figure.subplots(1, 2)
    metrics = evaluation.metrics
    if len(set(labels)) < 2:
        for axes in (roc, pr):
            axes.text(0.5, 0.5, "only one class of images:\nno curve", ha="center", va="center")
    else:
        flagged, defective = scores > evaluation.threshold, labels == 1
        recall, false_rate = flagged[defective].mean(), flagged[~defective].mean()
        false_rates, recalls, _ = roc_curve(labels, scores, drop_intermediate=False)
        roc.plot(false_rates, recalls, color=BLUE)
        roc.plot([0, 1], [0, 1], ":", color=GREY, label="chance")
        roc.plot(false_rate, recall, "o", color=VERMILION, label=_at_threshold(evaluation.threshold), clip_on=False)
        precisions, recalls, _ = precision_recall_curve(labels, scores)
        pr.plot(recalls, precisions, color=BLUE, drawstyle="steps-post")
        pr.axhline(metrics["image_prevalence"], linestyle=":", color=GREY, label="chance")
        if flagged.any():
            precision = defective[flagged].mean()
            pr.plot(recall, precision, "o", color=VERMILION, label=_at_threshold(evaluation.threshold), clip_on=False)
        roc.legend(loc="lower right", frameon=False)
        pr.legend(loc="lower left", frameon=False)  # a curve that is any good leaves it free
    interval = f"{metrics['image_auroc_low']:.3f} to {metrics['image_auroc_high']:.3f}"
    roc.set(title=f"AUROC {metrics['image_auroc']:.3f}\n(95 %: {interval})", xlabel="False-positive rate")
    roc.set(ylabel="Recall", xlim=(0, 1), ylim=(0, 1.02), aspect="equal")
    pr.set(title=f"Average precision {metrics['image_prauc']:.3f}\n(chance: {metrics['image_prevalence']:.3f})")
    pr.set(xlabel="Recall", ylabel="Precision", xlim=(0, 1), ylim=(0, 1.02), aspect="equal")
    figure.suptitle(f"{drawable(evaluation.category)}, {evaluation.architecture}: test images")
    save_figure(figure, path)


def save_score_distribution(evaluation: Evaluation, path: Path) -> None:
    """Draw every image's score, a row per defect type with good first, and the threshold through all rows."""
    groups = evaluation.scores.groupby("defect_type", sort=False)
    names = sorted(groups.groups, key=lambda name: (groups.get_group(name)["label"].iloc[0], name))
    figure = new_figure(7.6, 1.5 + 0.6 * len(names))
    axes = figure.subplots()
    spread = np.random.default_rng(0)
    for row, name in enumerate(names):
        group = groups.get_group(name)
        good = group["label"].iloc[0] == 0
        scores = group["score"].to_numpy()
        axes.scatter(
            scores,
            row + spread.uniform(-0.26, 0.26, len(scores)),
            s=24,
            color=BLUE if good else VERMILION,
            marker="o" if good else "D",
            alpha=0.6,
            linewidths=0,
        )
        axes.plot([np.median(scores)] * 2, [row - 0.36, row + 0.36], color="black", linewidth=2)
    labels = [
        f"{drawable(name)} ({(group['verdict'] == 'anomalous').sum()} of {len(group)} flagged)"
        for name, group in ((name, groups.get_group(name)) for name in names)
    ]
    axes.axvline(evaluation.threshold, color="black", linestyle="--", linewidth=1)
    axes.annotate(
        f"threshold {evaluation.threshold:.3g}",
        (evaluation.threshold, 1),
        xycoords=("data", "axes fraction"),
        xytext=(4, 4),
        textcoords="offset points",
    )
    axes.set_yticks(range(len(names)), labels)
    _scale_scores(axes, evaluation.scores["score"].to_numpy(), evaluation.threshold)
    axes.set(ylim=(len(names) - 0.5, -0.5), xlabel="Image score (higher is more anomalous); the bar is the median")
    figure.suptitle(f"{drawable(evaluation.category)}, {evaluation.architecture}: scores of the test images")
    save_figure(figure, path)


def save_training_curves(history: pd.DataFrame, path: Path) -> None:
    """Draw a job's history: loss terms, validation figures and learning rate over the epochs.

    Parameters
    ----------
    history
        One row per evaluation: `epoch`, `train_loss`, `loss_<term>`, `validation_score`, `validation_image_auroc`,
        `validation_pixel_ap`, `learning_rate`. Columns that are missing are left out.
    path
        The PNG; folders are made.
    """
    losses = ["train_loss", *sorted(name for name in history if name.startswith("loss_"))]
    validation = ["validation_score", "validation_image_auroc", "validation_pixel_ap"]
    figure = new_figure(12, 3.8)
    loss, score, rate = figure.subplots(1, 3)
    _plot_columns(loss, history, losses)
    _plot_columns(score, history, validation)
    _plot_columns(rate, history, ["learning_rate"])
    loss.set(title="Loss terms, and train_loss, their weighted sum", xlabel="Epoch", yscale="log")
    score.set(title="Validation (good against synthetic defects)", xlabel="Epoch", ylim=(0, 1.02))
    rate.set(title="Learning rate", xlabel="Epoch", ylim=(0, None))
    save_figure(figure, path)


def _plot_columns(axes: Axes, history: pd.DataFrame, columns: Sequence[str]) -> None:
    present = [name for name in columns if name in history]
    for name, colour, dash in zip(present, LINES * 3, DASHES * 3, strict=False):
        label = name.removeprefix("loss_").removeprefix("validation_")
        axes.plot(history["epoch"], history[name], color=colour, linestyle=dash, marker="o", markersize=3, label=label)
    if len(present) > 1:
        axes.legend(frameon=False)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlim(0, 1.03 * history["epoch"].max())


def _scale_scores(axes: Axes, scores: np.ndarray, threshold: float) -> None:
    """Scale x linearly around the threshold and logarithmically far from it: plain defects score a hundred times it."""
    width = 2 * anchor(threshold)
    low, high = np.arcsinh(np.array([min(scores.min(), threshold), max(scores.max(), threshold)]) / width)
    margin = 0.04 * (high - low)
    axes.set_xscale("asinh", linear_width=width)
    axes.set_xlim(*(width * np.sinh([low - margin, high + margin])))
    steps = np.outer(10.0 ** np.arange(-3, 9), (1, 2, 5)).ravel()
    ticks: list[float] = []
    for tick in sorted([0.0, *steps, *-steps], key=lambda tick: (abs(tick), tick)):
        place = np.arcsinh(tick / width)
        if low <= place <= high and all(abs(place - np.arcsinh(t / width)) > 0.1 * (high - low) for t in ticks):
            ticks.append(tick)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


def _at_threshold(threshold: float) -> str:
    return f"at the threshold {threshold:.3g}"
