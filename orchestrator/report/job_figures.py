"""What jobs leave in their folders, as figures under MLflow's names and in a few words for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msad.leaderboard_columns import KNOWN_DEFECTS
from msad.search.selection import seed_statistics
from msad.workspace import JobDirectory

VALIDATION = {  # figure of a job's result -> metric of its run
    "score": "validation_score",
    "image_auroc": "validation_image_auroc",
    "pixel_ap": "validation_pixel_ap",
    "chance": "validation_chance",
    "epoch": "best_epoch",
    "threshold": "threshold",
    "pixel_threshold": "pixel_threshold",
    "parameters": "parameters",
    "latency_ms": "latency_ms",
}


NAMED = 3  # suspects in a line


def validation_figures(result: Mapping[str, Any]) -> dict[str, float]:
    """Return a finished job's figures under their MLflow names: those of its best epoch, not of its last."""
    promised = {
        f"{kind}_{name}": float(value)
        for kind in ("false_alarms", "false_regions")
        for name, value in result.get(kind, {}).items()
    }
    known = {f"known_defects_{name}": float(result.get("known_defects", {}).get(name, 0)) for name in KNOWN_DEFECTS}
    told = known if any(known.values()) else {}
    return {VALIDATION[key]: float(value) for key, value in result.items() if key in VALIDATION} | promised | told


def known_figures(prefix: str, figures: Mapping[str, float | None]) -> dict[str, float]:
    """Return the figures that are numbers, under their MLflow names."""
    return {f"{prefix}{name}": value for name, value in figures.items() if value is not None and value == value}


def selection_figures(final: JobDirectory) -> dict[str, float]:
    """Return the report on a study's selection by image AUROC; empty where none was asked for."""
    report = (final.read("selection") or {}).get("image_auroc", {})
    names = {"random_mean": "random"}
    return known_figures("selection_", {names.get(name, name): value for name, value in report.items()})


def suspects_words(result: Mapping[str, Any]) -> str | None:
    """Return which good images stand out by a job's scores of them, in words; None where none does."""
    names = result.get("suspects") or []
    if not names:
        return None
    listed = ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
    return f"{len(names)} of the good images stand{'s' if len(names) == 1 else ''} out: {listed}"


def final_training(result: Mapping[str, Any]) -> str:
    """Say of a winner's result whether its model is the trial's own, or was trained again and why that was needed."""
    if trial := result.get("trial"):
        return f"none: the model of {trial}, which was a Ray Train job to the end"
    return "trained again: its trial ran inside a Tune trial, or its model was not kept"


def unmeasured(final: JobDirectory) -> str | None:
    """Return why a trained winner has no test figures although there are test images; None where it has, or has none.

    What is measured later counts: an object store keeps the older file.
    """
    if final.read("test") is not None or (found := final.read("unmeasured")) is None:
        return None
    return found["reason"]


def measured_words(tests: list[dict[str, float]]) -> str:
    """Return the first seed's image AUROC, or the mean and spread of all; `tests` is empty without test images."""
    if not tests:
        return "no test images to measure it on"
    several = seed_statistics(tests)
    if "image_auroc_mean" not in several:
        return _image_words(tests[0])
    mean, sd = several["image_auroc_mean"], several["image_auroc_sd"]
    return f"test image AUROC {mean:.4f} ± {sd:.4f}"


def _image_words(test: Mapping[str, float]) -> str:
    """Return one model's image AUROC, or what there is where the test split has images of one class alone."""
    auroc = test["image_auroc"]
    if auroc is not None and auroc == auroc:
        return f"test image AUROC {auroc:.4f}"
    good, defective = int(test.get("good_images", 0)), int(test.get("defective_images", 0))
    if defective:
        return f"no good test images, so no AUROC; {int(test['misses'])} of {defective} defective ones missed"
    return f"no defective test images, so no AUROC; {int(test.get('false_positives', 0))} of {good} good ones flagged"
