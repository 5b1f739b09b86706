"""Run a bundle over new images: a table of scores and a heatmap each, written as they come."""

from __future__ import annotations

import csv
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_io.decode import decode
from data_io.errors import DataError
from data_io.layout import IMAGE_SUFFIXES
from orchestrator.bundles import Bundle, Prediction
from orchestrator.errors import ConfigError, ResourceError
from orchestrator.heatmaps import save_overlay

COLUMNS = ("path", "score", "threshold", "verdict")


@dataclass
class FolderPrediction:
    """What came of a folder: how many images were scored and called anomalous, and why others were skipped, by path."""

    scored: int = 0
    anomalous: int = 0
    failed: dict[Path, str] = field(default_factory=dict)


def predict_folder(
    bundle: Bundle,
    images: Sequence[Path],
    out: Path,
    batch_size: int = 8,
    threshold: float | None = None,
    *,
    save_heatmaps: bool = True,
    save_maps: bool = False,
) -> FolderPrediction:
    """Score image files and everything in folders; memory holds one batch.

    Parameters
    ----------
    bundle
        The model.
    images
        Files, and folders that are searched to any depth for image files.
    out
        Folder for `scores.csv` (`path, score, threshold, verdict`; verdict is anomalous or good), `heatmaps/` and
        `maps/`, which repeat the folders the images are in. An older `scores.csv` there is replaced.
    batch_size
        Images through the network at once; the table is complete up to the last batch whenever it is killed.
    threshold
        Replaces the bundle's own.
    save_heatmaps
        Write a PNG of each image with its map over it, at the image's own size.
    save_maps
        Write each map as float32 H×W at the image's own size (.npy).

    Returns
    -------
    FolderPrediction
        Files that cannot be decoded are in `failed`; the others are scored all the same.

    Raises
    ------
    ConfigError
        No such file or folder, no image in any, or a threshold that is not finite.
    ResourceError
        The results cannot be written.
    """
    from rich.console import Console
    from rich.progress import track

    threshold = bundle.threshold if threshold is None else threshold
    if not math.isfinite(threshold):
        raise ConfigError(f"the threshold is {threshold}; it must be a finite number")
    paths = _expand(images, out)
    names = _names(paths)
    result = FolderPrediction()
    console = Console(stderr=True)
    starts = track(
        range(0, len(paths), batch_size), "Scoring", console=console, transient=True, disable=not console.is_terminal
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
        with (out / "scores.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(COLUMNS)
            for start in starts:
                for path, image, prediction in _predict(bundle, paths[start : start + batch_size], result):
                    verdict = "anomalous" if prediction.score > threshold else "good"
                    result.scored += 1
                    result.anomalous += verdict == "anomalous"
                    table.writerow((path, repr(prediction.score), repr(threshold), verdict))
                    if save_heatmaps:
                        save_overlay(image, prediction.anomaly_map, threshold, out / "heatmaps" / f"{names[path]}.png")
                    if save_maps:
                        target = out / "maps" / f"{names[path]}.npy"
                        target.parent.mkdir(parents=True, exist_ok=True)
                        np.save(target, prediction.anomaly_map)
                file.flush()
    except OSError as error:
        raise ResourceError(f"{error.filename or out}: the results cannot be written: {error.strerror}") from error
    return result


def _predict(
    bundle: Bundle, paths: Sequence[Path], result: FolderPrediction
) -> Iterator[tuple[Path, np.ndarray, Prediction]]:
    readable: dict[Path, np.ndarray] = {}
    for path in paths:
        try:
            readable[path] = decode(path)
        except DataError as error:
            result.failed[path] = str(error).removeprefix(f"{path}: ")
    predictions = bundle.predict(list(readable.values()), batch_size=len(paths))
    yield from zip(readable, readable.values(), predictions, strict=True)


def _expand(images: Sequence[Path], out: Path) -> list[Path]:
    """List the files, each once, in the order given; the results of an earlier run are no input."""
    missing = [str(path) for path in images if not path.exists()]
    if missing:
        raise ConfigError(f"no such file or folder: {', '.join(missing)}")
    results = out.resolve()
    found: list[Path] = []
    for path in images:
        if path.is_dir():
            inside = (file for file in sorted(path.rglob("*")) if file.suffix.lower() in IMAGE_SUFFIXES)
            found += [file for file in inside if results not in file.resolve().parents]
        else:
            found.append(path)
    if not found:
        raise ConfigError(f"no image ({', '.join(IMAGE_SUFFIXES)}) in {', '.join(str(path) for path in images)}")
    return list(dict.fromkeys(found))


def _names(paths: Sequence[Path]) -> dict[Path, Path]:
    """Name each image's results: its path below the folder all have in common, without suffix if that is clear."""
    # A link's own name counts, not the name of the file that it leads to.
    resolved = {path: path.parent.resolve() / path.name for path in paths}
    common = os.path.commonpath([path.parent for path in resolved.values()])
    short = {path: full.relative_to(common).with_suffix("") for path, full in resolved.items()}
    count = Counter(short.values())
    return {path: name if count[name] == 1 else name.with_name(path.name) for path, name in short.items()}
