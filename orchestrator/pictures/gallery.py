"""Pictures of an evaluation: the gallery of its images, and all pictures of a run in one call."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from msad.bundle.heatmaps import COLOURS, edge, overlay
from msad.bundle.map_scale import anchor
from msad.models.regions import find_regions
from msad.pictures.curves import save_roc_and_pr, save_score_distribution, save_training_curves
from msad.pictures.palette import ERROR_TEXT, GREY, drawable, save_figure

if TYPE_CHECKING:
    from msad.bundle.evaluation import Evaluation

__all__ = ["save_evaluation", "save_gallery", "save_training_curves"]

TRUTH = (0, 158, 115)  # green of the palette
MARKS = {"miss": "MISSED", "false positive": "FALSE ALARM"}
COLUMNS = ("Image", "Ground truth", "Anomaly map", "Overlay")


def save_evaluation(evaluation: Evaluation, directory: Path) -> list[Path]:
    """Write `gallery`, `examples`, `roc_pr` and `scores`, PNGs all, into a folder, which is made; return the files."""
    pictures = {
        "gallery": save_gallery,
        "examples": save_examples,
        "roc_pr": save_roc_and_pr,
        "scores": save_score_distribution,
    }
    files = []
    for name, save in pictures.items():
        files.append(directory / f"{name}.png")
        save(evaluation, files[-1])
    return files


def save_gallery(evaluation: Evaluation, path: Path, rows: int = 12) -> None:
    """Draw image, ground truth, anomaly map, overlay and verdict of the cases that teach most; see `pick`.

    They stand in two columns, to be read downwards, so that a dozen fits a screen. The colour scale is one for all,
    anchored at the threshold, so that good images look good.
    """
    chosen = pick(evaluation, rows)
    deep = max(1, math.ceil(len(chosen) / 2))
    side, gap, caption, head, foot = 1.68, 0.06, 0.26, 0.75, 0.85  # inches; places are known, so no layout is computed
    block = 4 * side + 3 * gap
    width, height = 2 * block + 0.7, head + deep * (side + caption) + foot
    figure = Figure(figsize=(width, height), dpi=110)
    top = 2 * anchor(evaluation.threshold)
    for place, index in enumerate(chosen):
        left = 0.2 + (block + 0.3) * (place // deep)
        bottom = height - head - (place % deep + 1) * (side + caption)
        image, mask, anomaly_map = (part[index] for part in (evaluation.images, evaluation.masks, evaluation.maps))
        shown = (image, _outlined(image, mask), anomaly_map, _overlay(evaluation, index))
        for column, (picture, title) in enumerate(zip(shown, COLUMNS, strict=True)):
            x = left + column * (side + gap)
            axes = figure.add_axes((x / width, bottom / height, side / width, side / height))
            axes.imshow(picture, cmap=COLOURS, vmin=0, vmax=top)  # the scale is for the map: the others are colours
            axes.set_axis_off()
            if title == COLUMNS[1] and not evaluation.masked[index] and evaluation.scores["label"].iloc[index]:
                axes.text(
                    0.5, 0.04, "no mask", transform=axes.transAxes, ha="center", color="white", backgroundcolor=GREY
                )
            if place % deep == 0:
                y = bottom + side + caption + 0.05
                figure.text((x + side / 2) / width, y / height, title, ha="center", color=GREY)
        _caption(figure, left / width, (bottom + side + 0.06) / height, evaluation, index)
    bar = figure.add_axes((0.3, 0.6 / height, 0.4, 0.12 / height))
    scale = figure.colorbar(ScalarMappable(Normalize(0, top), COLOURS), cax=bar, orientation="horizontal")
    scale.set_label(
        f"deviations from good images; outlined in the overlay is what is above {evaluation.pixel_threshold:.3g}"
    )
    title = f"{len(chosen)} of {len(evaluation.scores)} test images, threshold {evaluation.threshold:.3g}"
    named = f"{drawable(evaluation.category)}, {evaluation.architecture}: {title}"
    figure.text(0.5, 1 - 0.12 / height, named, ha="center", va="top", fontsize=13)
    save_figure(figure, path)


def save_examples(evaluation: Evaluation, path: Path, columns: int = 4, side: int = 200) -> None:
    """Draw a strip without text: a good image and defective ones above, their overlays below.

    They are those of median score of good and of each defect type, so neither the best nor the worst.
    """
    groups = sorted(evaluation.scores.groupby("defect_type"), key=lambda item: (item[1]["label"].iloc[0], item[0]))
    typical = [int(group.sort_values("score").index[len(group) // 2]) for _, group in groups][:columns]
    strip = Image.new("RGB", (len(typical) * (side + 4) - 4, 2 * (side + 4) - 4), "white")
    for column, index in enumerate(typical):
        outlined = _outlined(evaluation.images[index], evaluation.masks[index])
        for row, picture in enumerate((outlined, _overlay(evaluation, index))):
            fitted = ImageOps.contain(Image.fromarray(picture), (side, side))
            left, top = (side - fitted.width) // 2, (side - fitted.height) // 2
            strip.paste(fitted, (column * (side + 4) + left, row * (side + 4) + top))
    path.parent.mkdir(parents=True, exist_ok=True)
    strip.save(path)


def pick(evaluation: Evaluation, rows: int) -> list[int]:
    """Choose the images of a gallery, by position: errors, borderline cases, and typical ones of every kind.

    Up to a third are errors (misses and false positives in turn, furthest from the threshold first), up to a third the
    images closest to the threshold; the rest shows the median image of each defect type and of good, in turn with
    the highest scores. No image appears twice.
    """
    scores = evaluation.scores
    distance = (scores["score"] - evaluation.threshold).abs()
    by_error = [distance[scores["outcome"] == outcome].sort_values(ascending=False).index for outcome in MARKS]
    errors = _in_turn(*by_error)[: rows // 3]
    borderline = [index for index in distance.sort_values().index if index not in errors][: rows // 3]
    ranked = [group.sort_values("score").index for _, group in scores.groupby("defect_type", sort=False)]
    typical = [index[len(index) // 2] for index in ranked]
    rest = typical + _in_turn(*(index[::-1] for index in ranked))
    return list(dict.fromkeys([*errors, *borderline, *rest]))[:rows]


def _in_turn(*sequences: np.ndarray) -> list[int]:
    longest = max((len(sequence) for sequence in sequences), default=0)
    return [int(sequence[place]) for place in range(longest) for sequence in sequences if place < len(sequence)]


def _overlay(evaluation: Evaluation, index: int) -> np.ndarray:
    """Lay a map over its image and outline what is above the pixel threshold, all at the model's size."""
    anomaly_map = evaluation.maps[index]
    regions = find_regions(anomaly_map, evaluation.pixel_threshold)
    return overlay(evaluation.images[index], anomaly_map, evaluation.threshold, regions, evaluation.roi)


def _outlined(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    picture = image.copy()
    picture[edge(~mask)] = TRUTH  # around the defect: a line inside would cover the small ones
    return picture


def _caption(figure: Figure, x: float, y: float, evaluation: Evaluation, index: int) -> None:
    row = evaluation.scores.iloc[index]
    mark = MARKS.get(row["outcome"])
    named = f"{drawable(row['defect_type'])}/{drawable(Path(row['path']).name)}"
    text = f"{named}, score {row['score']:.3g}: {mark or row['verdict']}"
    look = {"color": ERROR_TEXT, "weight": "bold"} if mark else {}
    figure.text(x, y, text, **look)
