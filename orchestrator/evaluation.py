"""A finished model meets the test split: the only file of the product that opens it.

Shapes: N images of the split, H×W pixels; S is the model's image size.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from data_io.test_split import TestSplit
from models.metrics import average_precision, bootstrap_interval, f1_at, image_auroc, prevalence
from models.pixel_metrics import PixelMetrics, pixel_metrics
from orchestrator.bundles import Bundle, fit_map, to_tensor
from orchestrator.errors import ConfigError
from orchestrator.progress import track

MASKS_AT = ("model", "native")
BATCH_SIZE = 16
MapsAndMasks = Callable[[np.ndarray], tuple[Iterator[np.ndarray], Iterator[np.ndarray]]]


@dataclass(frozen=True)
class Evaluation:
    """What a bundle does on a test split.

    Parameters
    ----------
    category, architecture, threshold
        Of the bundle; `category` is the one measured.
    metrics
        `image_auroc` (and the ends of its 95 % bootstrap interval, `image_auroc_low`, `image_auroc_high`),
        `image_prauc` (average precision; its chance level is `image_prevalence`), `pixel_auroc`, `pixel_prauc`,
        `pixel_prevalence`, `aupro_30`, `aupro_05` (AU-PRO up to that false-positive rate), `f1`, `recall`,
        `false_positives` and `misses` (counts of images) at the bundle's threshold, the counts `good_images` and
        `defective_images` that they are of, and `latency_ms`, the median time of one image of the model's size through
        network and scorer. NaN where a class is missing.
    per_defect_type
        One row per type, measured with that type and the good images only: `images`, `image_auroc`, `recall`,
        `misses`, `pixel_auroc`, `pixel_prauc`, `aupro_30`; the index is the type.
    scores
        One row per image: `path`, `defect_type`, `label` (0/1), `score`, `threshold`, `verdict` (anomalous/good),
        `outcome` (hit, miss, false positive, correct rejection).
    images, masks, maps
        In the order of `scores`, at the model's size: uint8 N×S×S×3, bool N×S×S, float32 N×S×S.
    """

    category: str
    architecture: str
    threshold: float
    metrics: dict[str, float]
    per_defect_type: pd.DataFrame
    scores: pd.DataFrame
    images: np.ndarray = field(repr=False)
    masks: np.ndarray = field(repr=False)
    maps: np.ndarray = field(repr=False)


def evaluate(
    bundle: Bundle, root: str | Path, category: str, cache_dir: str | Path | None, masks_at: str = "model"
) -> Evaluation:
    """Measure a bundle on the test split of a category.

    Parameters
    ----------
    bundle
        What to measure.
    root, category
        Where the images are; any root in the MVTec AD layout.
    cache_dir
        Where decoded images are kept; None for the default.
    masks_at
        `model`: pixels are compared at the model's image size, masks resized by the nearest pixel; `native`: maps are
        resized to each mask's own size, which is what the test set asks for, and slower.

    Raises
    ------
    ConfigError
        `masks_at` is neither.
    DataError
        An image or a mask is missing or unreadable.
    """
    if masks_at not in MASKS_AT:
        raise ConfigError(f"masks_at is {masks_at!r}; it must be one of {', '.join(MASKS_AT)}")
    size = bundle.job.image_size
    split = TestSplit(root, category)
    images, masks, labels = split.images(size, cache_dir), split.masks(size), split.labels
    maps, score = _score(bundle, images)

    def pairs(chosen: np.ndarray) -> tuple[Iterator[np.ndarray], Iterator[np.ndarray]]:
        """Maps and masks of some images, one at a time."""
        if masks_at == "model":
            return iter(maps[chosen]), iter(masks[chosen])
        fitted = (fit_map(torch.from_numpy(maps[index, None]), split.native_size(index)) for index in chosen)
        wanted = set(chosen.tolist())
        return fitted, (mask for index, mask in enumerate(split.masks(None)) if index in wanted)

    scores = _score_table(split.table, score, bundle.threshold)
    metrics = _image_metrics(labels, score, bundle.threshold) | _pixel_columns(
        pixel_metrics(*pairs(np.arange(len(labels))))
    )
    return Evaluation(
        category=category,
        architecture=bundle.job.architecture,
        threshold=bundle.threshold,
        metrics=metrics | {"latency_ms": measure_latency(bundle)},
        per_defect_type=_per_defect_type(scores, pairs),
        scores=scores,
        images=images,
        masks=masks,
        maps=maps,
    )


def measure_latency(bundle: Bundle, repeats: int = 20) -> float:
    """Return the median time in ms that one image of the model's size takes on the bundle's device, batch of one."""
    size = bundle.job.image_size
    image_BCHW = torch.rand(1, 3, size, size, device=bundle.device)
    times = []
    for _ in range(repeats + 3):
        began = time.perf_counter()
        bundle.score_batch(image_BCHW)[1].cpu()  # reading the score waits for the device
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times[3:])  # the first calls also warm up


def _score(bundle: Bundle, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    maps = np.empty(images.shape[:3], np.float32)
    scores = np.empty(len(images), np.float32)
    for start in track(range(0, len(images), BATCH_SIZE), "Scoring images"):
        part = slice(start, start + BATCH_SIZE)
        map_B1HW, score_B = bundle.score_batch(to_tensor(images[part]))
        maps[part], scores[part] = map_B1HW[:, 0].cpu().numpy(), score_B.cpu().numpy()
    return maps, scores.astype(np.float64)


def _score_table(table: pd.DataFrame, score: np.ndarray, threshold: float) -> pd.DataFrame:
    flagged, defective = score > threshold, table["label"].to_numpy() == 1
    outcomes = np.select(
        [flagged & defective, defective, flagged], ["hit", "miss", "false positive"], "correct rejection"
    )
    return pd.DataFrame(
        {
            "path": [str(path) for path in table["path"]],
            "defect_type": table["defect_type"].to_numpy(),
            "label": defective.astype(int),
            "score": score,
            "threshold": threshold,
            "verdict": np.where(flagged, "anomalous", "good"),
            "outcome": outcomes,
        }
    )


def _image_metrics(labels: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, float]:
    low, high = bootstrap_interval(image_auroc, labels, scores)
    flagged = scores > threshold
    defective = labels == 1
    return {
        "image_auroc": image_auroc(labels, scores),
        "image_auroc_low": low,
        "image_auroc_high": high,
        "image_prauc": average_precision(labels, scores),
        "image_prevalence": prevalence(labels),
        "f1": f1_at(labels, scores, threshold),
        "recall": float(flagged[defective].mean()) if defective.any() else float("nan"),
        "false_positives": float(np.sum(flagged & ~defective)),
        "misses": float(np.sum(~flagged & defective)),
        "good_images": float(np.sum(~defective)),
        "defective_images": float(np.sum(defective)),
    }


def _pixel_columns(pixels: PixelMetrics) -> dict[str, float]:
    return {
        "pixel_auroc": pixels.auroc,
        "pixel_prauc": pixels.average_precision,
        "pixel_prevalence": pixels.prevalence,
        "aupro_30": pixels.aupro_30,
        "aupro_05": pixels.aupro_05,
    }


def _per_defect_type(scores: pd.DataFrame, pairs: MapsAndMasks) -> pd.DataFrame:
    rows = {}
    for name in scores.loc[scores["label"] == 1, "defect_type"].unique():
        chosen = scores[(scores["label"] == 0) | (scores["defect_type"] == name)]
        defective = chosen[chosen["label"] == 1]
        pixels = pixel_metrics(*pairs(chosen.index.to_numpy()))
        rows[name] = {
            "images": len(defective),
            "image_auroc": image_auroc(chosen["label"], chosen["score"]),
            "recall": float((defective["outcome"] == "hit").mean()),
            "misses": int((defective["outcome"] == "miss").sum()),
            "pixel_auroc": pixels.auroc,
            "pixel_prauc": pixels.average_precision,
            "aupro_30": pixels.aupro_30,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("defect_type")
