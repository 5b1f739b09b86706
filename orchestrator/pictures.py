"""Pictures of an evaluation: the gallery of its images, and all pictures of a run in one call."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from PIL import Image

from orchestrator.curves import save_roc_and_pr, save_score_distribution, save_training_curves
from orchestrator.heatmaps import COLOURS, anchor, edge, overlay
from orchestrator.palette import VERMILION, new_figure, save_figure

if TYPE_CHECKING:
    from orchestrator.evaluation import Evaluation

__all__ = ["save_evaluation", "save_gallery", "save_training_curves"]

TRUTH = (0, 158, 115)  # green of the palette
MARKS = {"miss": "MISSED", "false positive": "FALSE ALARM"}
COLUMNS = ("Image", "Ground truth", "Anomaly map", "Overlay")


def save_evaluation(evaluation: Evaluation, directory: Path) -> list[Path]:
    """Write `gallery.png`, `examples.png`, `roc_pr.png` and `scores.png` into a folder, which is made; return the files."""
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

    The colour scale is one for all rows, anchored at the threshold, so that good images look good.
    """
    chosen = pick(evaluation, rows)
    figure = new_figure(9.6, 2.15 * len(chosen) + 0.9)
    grid = figure.subplots(len(chosen), 4, squeeze=False)
    top = 2 * anchor(evaluation.threshold)
    for axes_row, index in zip(grid, chosen, strict=True):
        image, mask, anomaly_map = (part[index] for part in (evaluation.images, evaluation.masks, evaluation.maps))
        axes_row[0].imshow(image)
        axes_row[1].imshow(_outlined(image, mask))
        axes_row[2].imshow(anomaly_map, cmap=COLOURS, vmin=0, vmax=top)
        axes_row[3].imshow(overlay(image, anomaly_map, evaluation.threshold))
        _caption(axes_row[0], evaluation, index)
        for axes in axes_row:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
    for axes, title in zip(grid[0], COLUMNS, strict=True):
        axes.set_title(title)
    scale = figure.colorbar(
        ScalarMappable(Normalize(0, top), COLOURS), ax=grid, location="bottom", aspect=60, shrink=0.6, pad=0.01
    )
    scale.set_label("deviations from good images; the outline in the overlay is drawn at the middle of the scale")
    figure.suptitle(
        f"{evaluation.category}, {evaluation.architecture}: {len(chosen)} of {len(evaluation.scores)} test images, "
        f"threshold {evaluation.threshold:.3g}"
    )
    save_figure(figure, path)


def save_examples(evaluation: Evaluation, path: Path, columns: int = 4, side: int = 200) -> None:
    """Draw a strip without text: a good image and defective ones above, their overlays below.

    They are the images of median score of good and of each defect type, so that they are neither the best nor the worst.
    """
    ranked = [group.sort_values("score").index for _, group in evaluation.scores.groupby("label", sort=True)]
    groups = evaluation.scores[evaluation.scores["label"] == 1].groupby("defect_type", sort=True)
    typical = [int(index[len(index) // 2]) for index in ranked[:1] + [g.sort_values("score").index for _, g in groups]]
    strip = Image.new("RGB", (columns * (side + 4) - 4, 2 * (side + 4) - 4), "white")
    for column, index in enumerate(dict.fromkeys(typical[:columns])):
        image, mask, anomaly_map = (part[index] for part in (evaluation.images, evaluation.masks, evaluation.maps))
        for row, picture in enumerate((_outlined(image, mask), overlay(image, anomaly_map, evaluation.threshold))):
            strip.paste(Image.fromarray(picture).resize((side, side)), (column * (side + 4), row * (side + 4)))
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


def _outlined(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    picture = image.copy()
    picture[edge(~mask)] = TRUTH  # around the defect: a line inside would cover the small ones
    return picture


def _caption(axes: Axes, evaluation: Evaluation, index: int) -> None:
    row = evaluation.scores.iloc[index]
    mark = MARKS.get(row["outcome"])
    lines = [row["defect_type"], Path(row["path"]).name, f"score {row['score']:.3g}", mark or row["verdict"]]
    axes.set_ylabel(
        "\n".join(lines),
        rotation=0,
        ha="right",
        va="center",
        color=VERMILION if mark else "black",
        weight="bold" if mark else "normal",
    )
