"""Run a bundle over new images: a table of scores, a heatmap and a map each, written as they come.

While the network is at one batch, threads read the next. What is in memory are two batches, and a batch of large
photographs is a small one, so neither the number nor the size of the images matters.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from data_io.decode import decode, read_header, resize
from data_io.errors import DataError
from data_io.ground_truth import mask_files, mask_folders
from data_io.layout import IMAGE_SUFFIXES
from data_io.parallel import thread_pool
from orchestrator.bundles import Bundle
from orchestrator.delivery.images import fit_map, to_tensor
from orchestrator.delivery.predictions import MAPS, Results, Row, Settings
from orchestrator.errors import ConfigError, Interrupted, ResourceError
from orchestrator.terminal.progress import bar

BATCH_PIXELS = 1 << 25
"""Pixels of a batch at its images' own sizes, 100 MB of RGB: what limits the memory where images are large."""

_SHOWN = 10


@dataclass
class FolderPrediction:
    """What came of the images asked for.

    `scored` counts all that have a row, `earlier` those of them that had it before, `anomalous` those above the
    threshold; `skipped` says by path why an image could not be read, `masks` what was left out as ground truth.
    """

    scored: int = 0
    earlier: int = 0
    anomalous: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    masks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Image:
    """An image file: its path as given, and its place below the folder that all have in common."""

    path: str
    place: Path

    @property
    def file(self) -> str:
        """What tells it from all others: its absolute path. Links stay: a link's own name counts."""
        return os.path.abspath(self.path)  # noqa: PTH100 - a Path for each of a million files is slow


@dataclass(frozen=True)
class _Read:
    """What was read of an image file; `own` is the image at its own size, where that is needed."""

    small: np.ndarray
    own: np.ndarray | None
    height_width: tuple[int, int]
    state: tuple[int, int]


def predict_folder(
    bundle: Bundle,
    images: Sequence[Path],
    out: Path,
    *,
    batch_size: int = 8,
    threshold: float | None = None,
    heatmaps: bool = True,
    maps: str = "none",
    overwrite: bool = False,
) -> FolderPrediction:
    """Score image files and everything in folders; the same call again continues what a kill has cut short.

    An image that has a row already is not scored again, unless its file has changed since (size or time of change).
    One that cannot be read is tried again. On a
    terminal a bar shows the time left.

    Parameters
    ----------
    bundle
        The model.
    images
        Files, and folders that are searched to any depth for image files. What is hidden, `out` itself and the masks of
        a dataset (`data_io.ground_truth`) are left out, unless they are named themselves.
    out
        Folder for the results, see `orchestrator.delivery.predictions`.
    batch_size
        Images through the network at once, fewer if they are large. A kill loses at most the work on one batch.
    threshold
        Replaces the bundle's own.
    heatmaps
        Write a PNG of each image with its map over it, at the image's own size.
    maps
        Write each map at the image's own size: `npy`, float32 H×W in deviations; `png`, 16 bit grey, see
        `orchestrator.delivery.predictions.to_grey`; or `none`.
    overwrite
        Replace the results of an earlier run in `out`.

    Raises
    ------
    ConfigError
        No such file or folder, no image in any, a threshold that is not finite, or `out` holds results of another
        model, threshold or choice of files.
    ResourceError
        The results cannot be written.
    Interrupted
        Ctrl-C; the text says how to go on.
    """
    threshold = bundle.threshold if threshold is None else float(threshold)
    if not math.isfinite(threshold):
        raise ConfigError(f"the threshold is {threshold}; it must be a finite number")
    if maps not in MAPS:
        raise ConfigError(f"maps is {maps!r}; it must be one of {', '.join(MAPS)}")
    result = FolderPrediction()
    found = _find(images, out, result.masks)
    source = f"{bundle.job.category}, {bundle.job.architecture}, run {bundle.provenance.get('run_id', 'unknown')}"
    settings = Settings(bundle.fingerprint(), source, threshold, heatmaps, maps)
    try:
        with Results(out, settings, overwrite=overwrite) as results:
            done = {image.file for image in found if _is_current(results, image)}
            result.earlier = result.scored = len(done)
            result.anomalous = sum(results.rows[file].verdict == "anomalous" for file in done)
            todo = [image for image in found if image.file not in done]
            results.start(changed=[image.file for image in todo if image.file in results.rows])
            with bar() as progress:
                outcomes = _predict(bundle, results, todo, batch_size)
                for image, outcome in progress.track(outcomes, total=len(todo), description="Scoring"):
                    if isinstance(outcome, str):
                        result.skipped[image.path] = outcome
                    else:
                        result.scored += 1
                        result.anomalous += outcome.verdict == "anomalous"
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; {out} is complete as far as it goes, the same command continues it") from None
    except OSError as error:
        raise ResourceError(f"{error.filename or out}: the results cannot be written: {error.strerror}") from error
    return result


def format_outcome(result: FolderPrediction, out: Path) -> str:
    """Say in a few lines what came of it: the counts, the first images that were skipped, and where the rest stands."""
    earlier = f" ({result.earlier:,} of them earlier)" if result.earlier else ""
    lines = [f"skipped {path}: {reason}" for path, reason in [*result.skipped.items()][:_SHOWN]]
    if len(result.skipped) > _SHOWN:
        lines.append(f"and {len(result.skipped) - _SHOWN:,} more")
    lines.append(
        f"{result.scored:,} image(s) scored{earlier}, {result.anomalous:,} anomalous; see {out / 'scores.csv'}"
    )
    if result.skipped:
        lines.append(f"{len(result.skipped):,} skipped; see {out / 'skipped.csv'}")
    if result.masks:
        lines.append(
            f"{len(result.masks):,} left out that look like ground truth, {result.masks[0]} the first; "
            "to score one all the same, name it"
        )
    return "\n".join(lines)


def _predict(
    bundle: Bundle, results: Results, images: Iterable[_Image], batch_size: int
) -> Iterator[tuple[_Image, Row | str]]:
    """Score and write batch by batch; yield each image with its row, or why it has none."""
    settings = results.settings
    with thread_pool() as pool:
        for batch in _read_ahead(pool, _batches(images, batch_size), bundle.job.image_size, settings.heatmaps):
            readable = [(image, read) for image, read in batch if isinstance(read, _Read)]
            rows: list[Row] = []
            if readable:
                small = np.stack([read.small for _, read in readable])
                map_B1HW, score_B = bundle.score_batch(to_tensor(small, bundle.device))
                rows = [_row(results, *pair, score) for pair, score in zip(readable, score_B.tolist(), strict=True)]
                if settings.heatmaps or settings.maps != "none":
                    maps = map_B1HW.cpu()
                    list(pool.map(lambda *file: _write(results, *file), rows, [read for _, read in readable], maps))
            results.add(rows)
            row_of = {row.file: row for row in rows}
            for image, read in batch:
                if isinstance(read, str):
                    results.skip(image.path, read)
            yield from ((image, row_of.get(image.file, read)) for image, read in batch)


def _row(results: Results, image: _Image, read: _Read, score: float) -> Row:
    threshold = results.settings.threshold
    verdict = "anomalous" if score > threshold else "good"
    path = results.label(image.path, image.file)
    return Row(path, score, threshold, verdict, *results.names(image.place), image.file, *read.state)


def _write(results: Results, row: Row, read: _Read, map_1HW: Tensor) -> None:
    results.write_files(row, read.own, fit_map(map_1HW, read.height_width))


def _read_ahead(
    pool: Executor, batches: Iterable[list[_Image]], size: int, keep: bool
) -> Iterator[list[tuple[_Image, _Read | str]]]:
    """Read each batch while the one before it is worked on."""
    waiting = None
    for batch in batches:
        following = batch, [pool.submit(_read, image.path, size, keep) for image in batch]
        if waiting is not None:
            yield [(image, future.result()) for image, future in zip(*waiting, strict=True)]
        waiting = following
    if waiting is not None:
        yield [(image, future.result()) for image, future in zip(*waiting, strict=True)]


def _batches(images: Iterable[_Image], batch_size: int) -> Iterator[list[_Image]]:
    """Part the images: `batch_size` at once, but no more than `BATCH_PIXELS`, or one."""
    batch: list[_Image] = []
    pixels = 0
    for image in images:
        try:
            header = read_header(image.path)
            own = header.width * header.height
        except DataError:
            own = 0
        if batch and (len(batch) == batch_size or pixels + own > BATCH_PIXELS):
            yield batch
            batch, pixels = [], 0
        batch.append(image)
        pixels += own
    if batch:
        yield batch


def _read(path: str, size: int, keep: bool) -> _Read | str:
    try:
        state = _state(path)  # before its content: a change meanwhile is then seen by the next run
        image = decode(path)
    except DataError as error:
        return str(error).removeprefix(f"{path}: ")
    return _Read(resize(image, size), image if keep else None, image.shape[:2], state)


def _is_current(results: Results, image: _Image) -> bool:
    row = results.rows.get(image.file)
    return row is not None and (row.bytes, row.modified_ns) == _state(image.path)


def _state(path: str) -> tuple[int, int]:
    """Return a file's size and time of change; impossible ones where there is no such file: `decode` says so then."""
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path for each of a million files is slow
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _find(images: Sequence[Path], out: Path, masks: list[str]) -> list[_Image]:
    """List the files, each once, folder by folder, and add to `masks`; the results of an earlier run are no input."""
    missing = [str(path) for path in images if not path.exists()]
    if missing:
        raise ConfigError(f"no such file or folder: {', '.join(missing)}")
    # Links are not followed: a link's own name counts, not that of the file it leads to.
    roots = [Path(os.path.abspath(path)) for path in images]  # noqa: PTH100
    common = os.path.commonpath([root if root.is_dir() else root.parent for root in roots])
    found: dict[str, _Image] = {}
    for path, root in zip(images, roots, strict=True):
        place = root.relative_to(common)
        inside = _walk(path, place, out.resolve(), masks) if path.is_dir() else [_Image(str(path), place)]
        for image in inside:
            found.setdefault(image.file, image)
    if not found and masks:
        raise ConfigError(f"nothing but ground truth, {masks[0]} the first; to score it all the same, name it")
    if not found:
        raise ConfigError(f"no image ({', '.join(IMAGE_SUFFIXES)}) in {', '.join(str(path) for path in images)}")
    return list(found.values())


def _walk(folder: Path, place: Path, results: Path, masks: list[str]) -> Iterator[_Image]:
    for name, folders, files in os.walk(folder):
        parent = Path(name)
        if parent.resolve() == results:
            folders.clear()
            continue
        no_images = mask_folders(folders) | mask_files(files, parent.name)
        shown = [sorted(name for name in names if not name.startswith(".")) for names in (folders, files)]
        folders[:] = [name for name in shown[0] if name not in no_images]
        masks += [str(parent / name) for name in shown[0] if name in no_images]
        below = place / parent.relative_to(folder)
        for file in shown[1]:
            if not file.lower().endswith(IMAGE_SUFFIXES):
                continue
            if file in no_images:
                masks.append(str(parent / file))
            else:
                yield _Image(str(parent / file), below / file)
