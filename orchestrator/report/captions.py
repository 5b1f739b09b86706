"""The pictures of a report: for each a caption, and for those who cannot see it a text that says what is seen."""

from __future__ import annotations

import base64
import io
import math
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from msad.pictures.speed import save_speed
from msad.tracking.read_sweep import StudyReport

PHOTOGRAPHS = ("gallery", "examples")
EVALUATION = ("roc_pr", "scores", "training")
SEARCH = ("history", "importance", "parallel", "validation_test")


@dataclass(frozen=True)
class Picture:
    """An image to embed: its data URI, size in pixels, caption, and text for those who cannot see it."""

    name: str
    source: str
    width: int
    height: int
    caption: str
    alt: str


def pictures(study: StudyReport, names: Sequence[str]) -> list[Picture]:
    """Return those of a study's pictures that it has, in the order of the names."""
    texts = {
        "examples": _examples,
        "gallery": _gallery,
        "roc_pr": _roc_pr,
        "scores": _scores,
        "training": _training,
        "history": _history,
        "parallel": _parallel,
        "importance": _importance,
        "validation_test": _validation_test,
    }
    found = []
    for name in names:
        if name in study.pictures and (study.search is not None or name not in SEARCH):
            caption, alt = texts[name](study)
            found.append(Picture(name, *_embed(study.pictures[name], name in PHOTOGRAPHS), caption, alt))
    return found


def speed_picture(frame: pd.DataFrame) -> Picture | None:
    """Return what `msad.tracking.speed.speed_table` has as a picture; None where that is nothing."""
    if frame.empty:
        return None
    with tempfile.TemporaryDirectory() as folder:
        save_speed(frame, file := Path(folder) / "speed.png")
        embedded = _embed(file.read_bytes(), photograph=False)
    budget = frame.attrs["latency_budget"]
    stars = frame[frame["best"]].itertuples()
    best = (f"{row.category} {row.latency_ms:.1f} ms, {row.validation_score:.3f}" for row in stars)
    return Picture(
        "speed",
        *embedded,
        "What the trials are worth against the time that an image takes by each; along the line none beats another",
        f"Validation score against latency of {len(frame)} trials. "
        f"Best{'' if budget is None else f' within {budget:g} ms'}: {'; '.join(best) or 'none'}.",
    )


def _embed(png: bytes, photograph: bool) -> tuple[str, int, int]:
    """Return an image as a data URI, and its width and height: a third of the PNG's size or less.

    Photographs become WebP; diagrams have few colours, so they stay sharp as a PNG with a palette.
    """
    packed = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        width, height = image.size
        colours = image.convert("RGB")
        if photograph:
            colours.save(packed, "WEBP", quality=82)
        else:
            colours.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(packed, "PNG")
    kind = "webp" if photograph else "png"
    return f"data:image/{kind};base64,{base64.b64encode(packed.getvalue()).decode()}", width, height


def _figure(value: Any, digits: int = 3) -> str:
    return "unknown" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _test(study: StudyReport, name: str, digits: int = 3) -> str:
    return _figure(study.metrics.get(f"test_{name}", math.nan), digits)


def _errors(study: StudyReport) -> str:
    return (
        f"{_test(study, 'misses', 0)} of {_test(study, 'defective_images', 0)} defective images are missed, "
        f"{_test(study, 'false_positives', 0)} of {_test(study, 'good_images', 0)} good ones raise a false alarm"
    )


def _examples(study: StudyReport) -> tuple[str, str]:
    return (
        "Typical test images with the outline of the true defect, and what the model marks",
        f"Test images of {study.row['category']}: a good one and one of each defect type, each the one of median score "
        "of its kind. Above with the outline of the true defect, below with the anomaly map laid over it.",
    )


def _gallery(study: StudyReport) -> tuple[str, str]:
    return (
        "Gallery: errors first, then borderline cases, then typical ones of each kind. One colour scale for all.",
        f"Rows of test images of {study.row['category']}, each with its ground truth outlined, its anomaly map, the "
        f"map laid over the image, and score and verdict. In all, {_errors(study)}.",
    )


def _roc_pr(study: StudyReport) -> tuple[str, str]:
    return (
        "ROC and precision–recall curves of the test images; the dot is the model's own threshold",
        f"ROC curve with an area of {_test(study, 'image_auroc')} and precision–recall curve with an average precision "
        f"of {_test(study, 'image_prauc')} where chance is {_test(study, 'image_prevalence')}. At the threshold recall "
        f"is {_test(study, 'recall')}.",
    )


def _scores(study: StudyReport) -> tuple[str, str]:
    alt = f"Image scores in a row for good images and each defect type, with the threshold: {_errors(study)}."
    if study.per_defect_type is not None and "recall" in study.per_defect_type:
        flagged = (f"{name} {_figure(value, 2)}" for name, value in study.per_defect_type["recall"].items())
        alt += f" Share flagged by type: {', '.join(flagged)}."
    return "Scores of good images and each defect type, with the threshold", alt


def _training(study: StudyReport) -> tuple[str, str]:
    score, epoch = study.row["validation_score"], study.metrics.get("best_epoch", math.nan)
    return (
        "The winner's training: loss terms, validation figures, learning rate",
        f"Curves over the epochs of the loss terms, of the validation figures, and of the learning rate. The best "
        f"epoch is {_figure(epoch, 0)}; choosing it is worth a validation score of {_figure(score)}.",
    )


def _history(study: StudyReport) -> tuple[str, str]:
    counts = Counter(trial["state"] for trial in study.search["trials"])
    states = {"complete": "complete", "pruned": "stopped early", "failed": "failed"}
    states |= {"too_slow": "too slow", "running": "unfinished"}
    listed = ", ".join(f"{counts[state]} {word}" for state, word in states.items() if counts[state])
    chosen = _chosen(study.search)
    end = f" Trial {chosen['number']} was chosen, at {_figure(chosen['value'])}." if chosen else " None was chosen."
    return (
        "Every trial of the search, and the best so far",
        f"The {study.search['objective'].replace('_', ' ')} of {len(study.search['trials'])} trials in order: "
        f"{listed}.{end}",
    )


def _parallel(study: StudyReport) -> tuple[str, str]:
    chosen = _chosen(study.search)
    params = ", ".join(f"{name} {format_value(value)}" for name, value in chosen["params"].items()) if chosen else ""
    return (
        "The configurations tried: a row per parameter, a line per trial, darker is better",
        f"Parallel coordinates of the trials over {len(study.search['space'])} parameters."
        + (f" The chosen one has {params}." if params else ""),
    )


def _importance(study: StudyReport) -> tuple[str, str]:
    found = study.search["importance"]
    shares = sorted(found["shares"].items(), key=lambda item: -item[1])
    listed = ", ".join(f"{name} {share:.2f}" for name, share in shares)
    return (
        "Which parameters mattered for the validation score",
        f"Bars of parameter importance by {found['evaluator']}: {listed}." if shares else f"None: {found['reason']}.",
    )


def _validation_test(study: StudyReport) -> tuple[str, str]:
    trials, rank, chosen, oracle, random = (
        study.metrics.get(f"selection_{name}", math.nan)
        for name in ("trials", "spearman", "chosen", "oracle", "random")
    )
    return (
        "What the validation score was worth: validation against test, measured after the choice",
        f"Scatter of {_figure(trials, 0)} trials, validation score against test image AUROC. Their Spearman "
        f"correlation is {_figure(rank, 2)}. The chosen trial has {_figure(chosen)}, the best on test "
        f"{_figure(oracle)}, a random choice {_figure(random)} on average.",
    )


def _chosen(search: Mapping[str, Any]) -> dict[str, Any] | None:
    return next((trial for trial in search["trials"] if trial["number"] == search["chosen"]), None)


def format_value(value: Any) -> str:
    """Return a parameter's value as a person writes it: 0.00213 for 0.0021300401."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
