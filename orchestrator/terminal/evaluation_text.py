"""An evaluation as text for the terminal, at most 100 columns wide; the names are those of the metrics in MLflow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from msad.bundle.evaluation import Evaluation

_LONGEST_NAME = 18


def format_evaluation(evaluation: Evaluation) -> str:
    """Lay an evaluation out: the figures of the whole test split, then images and pixels of each defect type."""
    metrics, table = evaluation.metrics, evaluation.per_defect_type
    good, defective = int(metrics["good_images"]), int(metrics["defective_images"])
    false_alarms = int(metrics["false_positives"])
    meanings = {
        "image_auroc": "chance 0.5",
        "image_prauc": f"average precision; chance {_number(metrics['image_prevalence'])}",
        "f1": f"at the threshold {evaluation.threshold:.4g}",
        "recall": f"{metrics['misses']:.0f} of {defective} missed",
        "false_alarm_rate": f"false alarms: {false_alarms} of {good}",
        "recall_at_fpr": f"where at most {metrics['target_fpr']:.3g} of the good images are false alarms",
        "pixel_auroc": "chance 0.5",
        "pixel_prauc": f"average precision; chance {_number(metrics.get('pixel_prevalence', math.nan))}",
        "aupro_30": "AU-PRO to a false-positive rate of 0.3; chance 0.15",
        "aupro_05": "AU-PRO to a false-positive rate of 0.05; chance 0.025",
        "false_regions": f"in a good image, above the pixel threshold {evaluation.pixel_threshold:.4g}",
    }
    rows = [
        (name, _number(metrics[name]), _interval(metrics, name), meaning)
        for name, meaning in meanings.items()
        if name in metrics
    ]
    if metrics.get("defect_regions", 0) > 0:
        found, defects = (f"{metrics[name]:.0f}" for name in ("found_regions", "defect_regions"))
        rows.append(("found_regions", found, "", f"of {defects} regions of the ground truth"))
    rows.append(("latency_ms", f"{metrics['latency_ms']:.1f}", "", "one image through network and scorer"))
    parts = [
        f"{evaluation.category}, {evaluation.architecture}: {good} good and {defective} defective test images",
        _columns([("", "", "95 % interval", ""), *rows], "<>><"),
    ]
    if promised := evaluation.false_alarms:
        parts.append(
            f"The threshold rests on {promised['held_out']} held-out good images, which certify no false-alarm rate "
            f"below {promised['smallest']:.1%}.\nAimed at was {promised['target']:.3g}; promised is at most "
            f"{promised['expected']:.1%} on average, and {promised['at_most']:.1%} for 95 of 100 such models."
        )
    if promised := evaluation.false_regions:
        parts.append(
            f"The pixel threshold rests on the same images, whose maps have {promised['regions']} regions above it in "
            f"all.\nAimed at were {promised['target']:.3g} per good image; promised is that on average at most "
            f"{promised['expected']:.1%} of them show one."
        )
    if len(table):
        parts += [
            "Each defect type against the good images; in brackets the 95 % interval",
            _images(table),
        ]
        if "pixel_auroc" in table:
            parts.append(_pixels(table))
    if evaluation.remarks:
        parts.append("\n".join(f"note: {remark}" for remark in evaluation.remarks))
    return "\n\n".join(parts)


def _images(table: pd.DataFrame) -> str:
    header = ("of images", "number", "missed", "AUROC", "PRAUC", "F1", "recall", "at FPR")
    rows = [
        (
            _shortened(name),
            f"{row['images']:.0f}",
            f"{row['misses']:.0f}",
            _with_interval(row, "image_auroc"),
            _number(row["image_prauc"], 3),
            _number(row["f1"], 3),
            _with_interval(row, "recall"),
            _number(row["recall_at_fpr"], 3),
        )
        for name, row in table.iterrows()
    ]
    return _columns([header, *rows], "<>>>>>>>")


def _pixels(table: pd.DataFrame) -> str:
    header = ("of pixels", "AUROC", "PRAUC", "AU-PRO to 0.3", "to 0.05")
    columns = ("pixel_auroc", "pixel_prauc", "aupro_30", "aupro_05")
    rows = [(_shortened(name), *(_number(row[column], 3) for column in columns)) for name, row in table.iterrows()]
    return _columns([header, *rows], "<>>>>")


def _columns(rows: Sequence[Sequence[str]], sides: str) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)).rstrip()
        for row in rows
    )


def _number(value: float, digits: int = 4) -> str:
    return "-" if value != value else f"{value:.{digits}f}"


def _interval(figures: dict[str, float], name: str) -> str:
    low, high = figures.get(f"{name}_low", float("nan")), figures.get(f"{name}_high", float("nan"))
    return "" if low != low else f"{low:.3f} to {high:.3f}"


def _with_interval(row: pd.Series, name: str) -> str:
    value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    return "-" if value != value else f"{value:.3f} ({low:.3f}–{high:.3f})"


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
