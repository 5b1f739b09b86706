"""A finished model meets the test split: the only file of the product that opens it.

Shapes: N images of the split, H×W pixels; h×w is the model's image size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from msad.bundle.bundles import Bundle
from msad.bundle.drift import FEWEST, compare
from msad.bundle.exported_model import ExportedModel
from msad.bundle.images import fit_map
from msad.bundle.latency import measure_latency
from msad.bundle.measured_regions import MeasuredRegions
from msad.data_io.cache import digests
from msad.data_io.decode import resize_mask
from msad.data_io.errors import DataError
from msad.data_io.image_statistics import statistics_of_files
from msad.data_io.test_split import TestSplit
from msad.errors import ConfigError
from msad.models.metrics.image_metrics import image_metrics, prevalence
from msad.models.metrics.pixel_metrics import PixelMetrics, grouped_pixel_metrics
from msad.progress import track

MASKS_AT = ("model", "native")
BATCH_SIZE = 16
OF_PIXELS = ("pixel_auroc", "pixel_prauc", "aupro_30", "aupro_05")
PER_DEFECT_TYPE = (
    *("images", "image_auroc", "image_auroc_low", "image_auroc_high", "image_prauc", "image_prevalence"),
    *("f1", "recall", "recall_low", "recall_high", "recall_at_fpr", "misses"),
    *OF_PIXELS,
)


@dataclass(frozen=True)
class Evaluation:
    """What a bundle does on a test split.

    Parameters
    ----------
    category, architecture, threshold, pixel_threshold
        Of the bundle; `category` is the one measured.
    false_alarms, false_regions
        What the bundle's thresholds promise, as `msad.models.thresholds.FalseAlarms.to_dict` and
        `msad.models.false_regions.FalseRegions.to_dict` give it; empty where the bundle does not say.
    metrics
        Of images: `image_auroc`, `image_prauc` (average precision; its chance level is `image_prevalence`), `f1`,
        `recall` and `false_alarm_rate` at the bundle's threshold, and `recall_at_fpr`, the recall at the false-positive
        rate that the job aims at, `target_fpr`. Each of these six has the ends of its 95 % interval beside it (see
        `msad.models.metrics.image_metrics`), as in `image_auroc_low` and `image_auroc_high`. Of pixels: `pixel_auroc`,
        `pixel_prauc`, `pixel_prevalence`, and `aupro_30` and `aupro_05`, AU-PRO up to that false-positive rate. Of
        regions at the pixel threshold: `false_regions`, `defect_regions` and `found_regions`, see
        `msad.bundle.measured_regions`. Counts of images: `false_positives` and `misses` at the threshold, of
        `good_images` and `defective_images`. And `latency_ms`, the median time of one image of the model's size through
        network and scorer. NaN where a class is missing. Pixels are those of the images whose ground truth is known,
        `masked_images` defective ones; without any there is no figure of pixels.
    per_defect_type
        One row per type, measured with that type and the good images only; the index is the type, the columns are
        `PER_DEFECT_TYPE`, named as in `metrics`, with `images` of the type; those of pixels are NaN for a type without
        masks, and missing where no type has any.
    scores
        One row per image: `path`, `defect_type`, `label` (0/1), `score`, `threshold`, `verdict` (anomalous/good),
        `outcome` (hit, miss, false positive, correct rejection).
    regions
        One row per region of the maps, in the images' own pixels; see `msad.bundle.measured_regions`.
    images, masks, maps
        In the order of `scores`, at the model's size: uint8 N×h×w×3, a map of the cache's file; bool N×h×w; float32
        N×h×w. So 5 h w bytes of memory an image, 0.3 MB at 256 pixels, whatever its own size.
    roi
        The bundle's region of interest, bool h×w; None where all of an image counts. Pixels and regions are measured
        inside alone.
    masked
        bool N: whether the mask is known; False for a defective image without one.
    remarks
        What is worth saying of the test split as it was read, in sentences; see `TestSplit.remarks`.
    """

    category: str
    architecture: str
    threshold: float
    pixel_threshold: float
    false_alarms: dict[str, float]
    false_regions: dict[str, float]
    metrics: dict[str, float]
    per_defect_type: pd.DataFrame
    scores: pd.DataFrame
    regions: pd.DataFrame
    images: np.ndarray = field(repr=False)
    masks: np.ndarray = field(repr=False)
    maps: np.ndarray = field(repr=False)
    masked: np.ndarray = field(repr=False)
    roi: np.ndarray | None = field(default=None, repr=False)
    remarks: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Return the figures without the images, for JSON."""
        names = ("category", "architecture", "threshold", "pixel_threshold")
        names += ("false_alarms", "false_regions", "metrics", "remarks")
        named = {name: getattr(self, name) for name in names}
        return named | {"per_defect_type": self.per_defect_type.to_dict("index")}


def evaluate(
    bundle: Bundle | ExportedModel,
    root: str | Path,
    category: str,
    cache_dir: str | Path | None,
    masks_at: str = "model",
    layout: str = "auto",
) -> Evaluation:
    """Measure a bundle on the test split of a category.

    Parameters
    ----------
    bundle
        What to measure; of an exported file every figure is that of the file.
    root, category
        Where the images are.
    cache_dir
        Where decoded images are kept; None for the default.
    masks_at
        `model`: pixels are compared at the model's image size, masks resized by the nearest pixel; `native`: maps are
        resized to each mask's own size, which is what the test set asks for, and slower. Either way images, maps and
        masks go by one after another, each decoded once; only the scores of the pixels compared are held, 4 bytes each.
    layout
        How the images are laid out, see `msad.data_io.layout.find_layout`.

    Raises
    ------
    ConfigError
        `masks_at` is neither, or a file takes photographs of one size alone, which is not the model's.
    DataError
        An image is missing, or an image or a mask is unreadable. A missing mask is none: see `Evaluation.metrics`. Or
        an image is one of the known defects that the bundle was chosen or trained by.
    """
    if masks_at not in MASKS_AT:
        raise ConfigError(f"masks_at is {masks_at!r}; it must be one of {', '.join(MASKS_AT)}")
    if isinstance(bundle, ExportedModel) and not bundle.takes_its_own_size:
        height, width = bundle.photograph
        raise ConfigError(
            f"{bundle.path}: takes photographs of {height}x{width} alone, and is measured at the model's size, "
            f"{bundle.job.image_size}: export a file for that size, or for any"
        )
    size = bundle.job.image_size
    split = TestSplit(root, category, layout)
    _refuse_known(bundle, split, cache_dir)
    images = split.images(size, cache_dir, bundle.job.bit_depth)
    maps, score = _score(bundle, images)
    masks, regions = np.zeros(maps.shape, bool), MeasuredRegions(bundle.pixel_threshold)
    roi, outside = bundle.roi, []

    def compared_maps() -> Iterator[np.ndarray]:
        for index, anomaly_map in enumerate(maps):
            if not split.masked[index]:
                continue
            native = masks_at == "native"
            yield fit_map(torch.from_numpy(anomaly_map[None]), split.native_size(index)) if native else anomaly_map

    def compared_masks() -> Iterator[np.ndarray]:
        for index, mask in enumerate(split.masks()):
            if roi is not None:
                inside = mask & resize_mask(roi, mask.shape)
                if mask.any() and not inside.any():
                    outside.append(index)
                mask = inside
            masks[index] = resize_mask(mask, size)
            regions.add(index, maps[index], split.native_size(index), mask if split.masked[index] else None)
            if split.masked[index]:
                yield mask if masks_at == "native" else masks[index]

    def compared_places() -> Iterator[np.ndarray]:
        for index in np.flatnonzero(split.masked):
            yield resize_mask(roi, split.native_size(index)) if masks_at == "native" else roi

    scores = _score_table(split.table, score, bundle.threshold)
    types = [name if label else None for name, label in zip(split.defect_types, split.labels, strict=True)]
    pixels, pixels_of_type = None, {}
    if split.has_masks:
        known = [name for name, masked in zip(types, split.masked, strict=True) if masked]
        places = None if roi is None else compared_places()
        pixels, pixels_of_type = grouped_pixel_metrics(compared_maps(), compared_masks(), known, places)
    else:
        for index, anomaly_map in enumerate(maps):
            regions.add(index, anomaly_map, split.native_size(index), None)
    target = bundle.job.false_positive_rate
    metrics = _metrics(scores, pixels, target) | regions.figures(split.labels)
    metrics["latency_ms"] = measure_latency(bundle)
    if pixels is not None:
        metrics["masked_images"] = float((split.labels[split.masked] == 1).sum())
    return Evaluation(
        category=category,
        architecture=bundle.job.architecture,
        threshold=bundle.threshold,
        pixel_threshold=bundle.pixel_threshold,
        false_alarms=dict(bundle.provenance.get("false_alarms", {})),
        false_regions=dict(bundle.provenance.get("false_regions", {})),
        metrics=metrics,
        per_defect_type=_per_defect_type(scores, dict.fromkeys(filter(None, types)), pixels_of_type, target),
        scores=scores,
        regions=regions.table(scores),
        images=images,
        masks=masks,
        maps=maps,
        masked=split.masked,
        roi=roi,
        remarks=[
            *split.remarks(size, cache_dir, bundle.job.bit_depth),
            *_roi_remarks(roi, len(outside)),
            *_drift_remarks(bundle, split, score, cache_dir),
        ],
    )


def _roi_remarks(roi: np.ndarray | None, outside: int) -> list[str]:
    """Say which part of the images was looked at, and what was not to be found there."""
    if roi is None:
        return []
    remarks = [f"region of interest: {roi.mean():.0%} of each image; images and pixels are measured inside alone"]
    if outside:
        remarks.append(f"the defect of {outside} image(s) lies outside of the region: none of it can be found")
    return remarks


def _drift_remarks(
    bundle: Bundle | ExportedModel, split: TestSplit, score: np.ndarray, cache_dir: str | Path | None
) -> list[str]:
    """Say whether the good test images are unlike the held-out good ones that the thresholds rest on."""
    held_out, good = bundle.provenance.get("held_out"), np.flatnonzero(split.labels == 0)
    if not held_out or len(good) < FEWEST:
        return []
    statistics = statistics_of_files([split.paths[index] for index in good], bundle.job.bit_depth, cache_dir)
    found = compare(held_out, bundle.threshold, {"score": score[good], **statistics})
    return [f"the good test images are unlike the held-out good ones: {found.words}"] if found.findings else []


def _refuse_known(bundle: Bundle, split: TestSplit, cache_dir: str | Path | None) -> None:
    """Refuse to measure a bundle on what it was chosen or trained by; the data's check cannot see every test split."""
    identity = bundle.provenance.get("identity") or {}
    known = {line.partition("  ")[0] for name in ("known", "taught") for line in identity.get(name, ())}
    if not known:
        return
    shown = [path for path, digest in zip(split.paths, digests(split.paths, cache_dir), strict=True) if digest in known]
    if shown:
        raise DataError(
            f"{shown[0]}: {len(shown)} of the test images are known defects that this model was chosen by, this one "
            "the first; take them out of the test images to measure it"
        )


def save_tables(evaluation: Evaluation, directory: Path, prefix: str = "") -> None:
    """Write `scores.csv`, `regions.csv` and `per_defect_type.csv` into a folder that exists, named with the prefix."""
    evaluation.scores.to_csv(directory / f"{prefix}scores.csv", index=False)
    evaluation.regions.to_csv(directory / f"{prefix}regions.csv", index=False)
    evaluation.per_defect_type.to_csv(directory / f"{prefix}per_defect_type.csv")


def _score(bundle: Bundle | ExportedModel, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    maps = np.empty(images.shape[:3], np.float32)
    scores = np.empty(len(images), np.float32)
    for start in track(range(0, len(images), BATCH_SIZE), "Scoring images"):
        part = slice(start, start + BATCH_SIZE)
        maps[part], scores[part] = bundle.score_images(images[part])
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


def _metrics(scores: pd.DataFrame, pixels: PixelMetrics | None, target_fpr: float) -> dict[str, float]:
    """Measure some images of the score table, whose pixels are measured already, or have no ground truth."""
    labels, outcomes = scores["label"].to_numpy(), scores["outcome"]
    threshold = scores["threshold"].iloc[0]
    estimates = image_metrics(labels, scores["score"].to_numpy(), threshold, target_fpr)
    named = {
        f"{name}{end}": value
        for name, estimate in estimates.items()
        for end, value in zip(("", "_low", "_high"), estimate, strict=True)
    }
    of_images = named | {
        "image_prevalence": prevalence(labels),
        "target_fpr": float(target_fpr),
        "false_positives": float((outcomes == "false positive").sum()),
        "misses": float((outcomes == "miss").sum()),
        "good_images": float((labels == 0).sum()),
        "defective_images": float((labels == 1).sum()),
    }
    if pixels is None:
        return of_images
    return of_images | {
        "pixel_auroc": pixels.auroc,
        "pixel_prauc": pixels.average_precision,
        "pixel_prevalence": pixels.prevalence,
        "aupro_30": pixels.aupro_30,
        "aupro_05": pixels.aupro_05,
    }


def _per_defect_type(
    scores: pd.DataFrame, types: Iterable[str], pixels: dict[str, PixelMetrics], target_fpr: float
) -> pd.DataFrame:
    rows, types = [], list(types)
    for name in types:
        of_type = scores[(scores["label"] == 0) | (scores["defect_type"] == name)]
        metrics = _metrics(of_type, pixels.get(name), target_fpr)
        rows.append({**metrics, "images": metrics["defective_images"]})
    columns = [name for name in PER_DEFECT_TYPE if pixels or name not in OF_PIXELS]
    table = pd.DataFrame(rows, index=pd.Index(types, name="defect_type"), columns=columns)
    return table.astype({"images": int, "misses": int})
