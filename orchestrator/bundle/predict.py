"""Run a bundle over new images: tables of scores and regions, a heatmap and a map each, written as they come.

While the network is at one batch, threads read the next. What is in memory are two batches, and a batch of large
photographs is a small one, so neither the number nor the size of the images matters.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from msad.bundle.bundles import Bundle
from msad.bundle.drift import Drift, compare
from msad.bundle.image_files import ImageFile, find_images
from msad.bundle.images import fit_map, to_tensor
from msad.bundle.predictions import MAPS, Results, Row, Settings
from msad.bundle.record_files import Entry, make_entry
from msad.data_io.decode import Decoded, read_header, read_image, resize
from msad.data_io.errors import DataError
from msad.data_io.image_statistics import image_statistics
from msad.data_io.parallel import thread_pool
from msad.data_io.remarks import ReadingRemarks
from msad.errors import ConfigError, Interrupted, ResourceError
from msad.models.regions import SMALLEST_AREA, find_regions
from msad.progress import bar

BATCH_PIXELS = 1 << 25
"""Pixels of a batch at its images' own sizes, 100 MB of RGB: what limits the memory where images are large."""

_SHOWN = 10


@dataclass
class FolderPrediction:
    """What came of the images asked for.

    `scored` counts all that have a row, `earlier` those of them that had it before, `anomalous` those above the
    threshold, `regions` the regions of all their maps; `skipped` says by path why an image could not be read, `masks`
    what was left out as ground truth, `others` which files are plainly no images. `remarks` are what is worth saying of
    those that were read now, in sentences. `drift` compares all that were asked for with the bundle's held-out images.
    """

    scored: int = 0
    earlier: int = 0
    anomalous: int = 0
    regions: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    masks: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    drift: Drift | None = None


@dataclass(frozen=True)
class _Read:
    """What was read of an image file: as the network sees it; `own` is it at its own size, where that is needed."""

    small: np.ndarray
    own: np.ndarray | None
    height_width: tuple[int, int]
    state: tuple[int, int]
    decoded: Decoded
    statistics: dict[str, float]


def predict_folder(
    bundle: Bundle,
    images: Sequence[Path],
    out: Path,
    *,
    batch_size: int = 8,
    threshold: float | None = None,
    pixel_threshold: float | None = None,
    smallest_area: int = SMALLEST_AREA,
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
        Files, and folders that are searched to any depth for image files, see `msad.bundle.image_files`.
    out
        Folder for the results, see `msad.bundle.predictions`.
    batch_size
        Images through the network at once, fewer if they are large. A kill loses at most the work on one batch.
    threshold, pixel_threshold
        Replace the bundle's own.
    smallest_area
        Of a region, in pixels of its image; what is smaller is neither listed nor outlined.
    heatmaps
        Write a PNG of each image with its map over it and its regions outlined, at the image's own size.
    maps
        Write each map at the image's own size: `npy`, float32 H×W in deviations; `png`, 16 bit grey, see
        `msad.bundle.map_scale.to_grey`; or `none`.
    overwrite
        Replace the results of an earlier run in `out`.

    Raises
    ------
    ConfigError
        No such file or folder, no image in any, a threshold that is not finite, an area below 1, or `out` holds results
        of another model, threshold or choice of files.
    ResourceError
        The results cannot be written.
    Interrupted
        Ctrl-C; the text says how to go on.
    """
    threshold = _finite("threshold", bundle.threshold if threshold is None else threshold)
    pixel_threshold = _finite("pixel threshold", bundle.pixel_threshold if pixel_threshold is None else pixel_threshold)
    if smallest_area < 1:
        raise ConfigError(f"the smallest area is {smallest_area}; it must be at least 1 pixel")
    if maps not in MAPS:
        raise ConfigError(f"maps is {maps!r}; it must be one of {', '.join(MAPS)}")
    found = find_images(images, out)
    result = FolderPrediction(skipped=dict(found.skipped), masks=found.masks, others=found.others)
    remarks = ReadingRemarks(bundle.job.bit_depth)
    source = f"{bundle.job.category}, {bundle.job.architecture}, run {bundle.provenance.get('run_id', 'unknown')}"
    settings = Settings(bundle.fingerprint(), source, threshold, pixel_threshold, smallest_area, heatmaps, maps)
    try:
        with Results(out, settings, overwrite=overwrite) as results:
            done = {image.file for image in found.images if _is_current(results, image)}
            result.earlier = result.scored = len(done)
            result.anomalous = sum(results.rows[file].verdict == "anomalous" for file in done)
            todo = [image for image in found.images if image.file not in done]
            results.start(changed=[image.file for image in todo if image.file in results.rows])
            for path, reason in found.skipped.items():
                results.skip(path, reason)
            with bar() as progress:
                outcomes, new = _predict(bundle, results, todo, batch_size, remarks), set()
                for image, outcome in progress.track(outcomes, total=len(todo), description="Scoring"):
                    if isinstance(outcome, str):
                        result.skipped[image.path] = outcome
                    else:
                        result.scored += 1
                        new.add(outcome.path)
                        result.anomalous += outcome.verdict == "anomalous"
            rows = (results.rows.get(image.file) for image in found.images)
            paths = {row.path for row in rows if row is not None} | new
            held_out = bundle.provenance.get("held_out")
            result.drift = compare(held_out, threshold, results.seen(paths))
            results.finish(result.drift, held_out)
            result.regions = results.region_count
            result.remarks = remarks.sentences()
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
    lines.append(f"{result.regions:,} region(s) in their maps; see {out / 'regions.csv'}")
    if result.drift and result.drift.findings:
        lines.append(
            f"drift: {result.drift.words}, compared with the {result.drift.held_out} held-out good images; "
            f"`msad drift {out}` shows since when"
        )
    if result.skipped:
        lines.append(f"{len(result.skipped):,} skipped; see {out / 'skipped.csv'}")
    if result.masks:
        lines.append(
            f"{len(result.masks):,} left out that look like ground truth, {result.masks[0]} the first; "
            "to score one all the same, name it"
        )
    if result.others:
        lines.append(f"{len(result.others):,} other file(s) are no images, {result.others[0]} the first")
    lines += [f"note: {remark}" for remark in result.remarks]
    return "\n".join(lines)


def _predict(
    bundle: Bundle, results: Results, images: Iterable[ImageFile], batch_size: int, remarks: ReadingRemarks
) -> Iterator[tuple[ImageFile, Row | str]]:
    """Score and write batch by batch; yield each image with its row, or why it has none."""
    settings, roi = results.settings, bundle.roi

    def read(image: ImageFile) -> _Read | str:
        return _read(image.path, bundle.job.sides, bundle.job.bit_depth, settings.heatmaps)

    with thread_pool() as pool:
        for batch in _read_ahead(pool, _batches(images, batch_size), read):
            readable = [(image, outcome) for image, outcome in batch if isinstance(outcome, _Read)]
            rows: list[Row] = []
            entries: list[Entry] = []
            if readable:
                small = np.stack([read.small for _, read in readable])
                map_B1HW, score_B = bundle.score_batch(to_tensor(small, bundle.device))
                rows = [_row(results, *pair, score) for pair, score in zip(readable, score_B.tolist(), strict=True)]
                reads, maps = [read for _, read in readable], map_B1HW.cpu()
                entries = list(pool.map(lambda *file: _write(results, roi, *file), rows, reads, maps))
            results.add(rows, entries)
            row_of = {row.file: row for row in rows}
            for image, outcome in batch:
                if isinstance(outcome, str):
                    results.skip(image.path, outcome)
                else:
                    remarks.add(image.path, outcome.decoded.largest, outcome.decoded.clipped, outcome.decoded.pages)
            yield from ((image, row_of.get(image.file, outcome)) for image, outcome in batch)


def _row(results: Results, image: ImageFile, read: _Read, score: float) -> Row:
    threshold = results.settings.threshold
    verdict = "anomalous" if score > threshold else "good"
    path = results.label(image.path, image.file)
    return Row(path, score, threshold, verdict, *results.names(image.place), image.file, *read.state)


def _write(results: Results, roi: np.ndarray | None, row: Row, read: _Read, map_1HW: Tensor) -> Entry:
    """Write an image's files and return its regions; a map that needs neither stays at the network's size."""
    settings, regions = results.settings, []
    if row.heatmap or row.map or map_1HW.max() > settings.pixel_threshold:
        anomaly_map = fit_map(map_1HW, read.height_width)
        regions = find_regions(anomaly_map, settings.pixel_threshold, settings.smallest_area)
        results.write_files(row, read.own, anomaly_map, regions, roi)
    named = {name: getattr(row, name) for name in ("path", "verdict", "score")}
    return make_entry(named, row.modified_ns, read.height_width, read.statistics, regions)


def _finite(name: str, value: float) -> float:
    if not math.isfinite(value):
        raise ConfigError(f"the {name} is {value}; it must be a finite number")
    return float(value)


def _read_ahead(
    pool: Executor, batches: Iterable[list[ImageFile]], read: Callable[[ImageFile], _Read | str]
) -> Iterator[list[tuple[ImageFile, _Read | str]]]:
    """Read each batch while the one before it is worked on."""
    waiting = None
    for batch in batches:
        following = batch, [pool.submit(read, image) for image in batch]
        if waiting is not None:
            yield [(image, future.result()) for image, future in zip(*waiting, strict=True)]
        waiting = following
    if waiting is not None:
        yield [(image, future.result()) for image, future in zip(*waiting, strict=True)]


def _batches(images: Iterable[ImageFile], batch_size: int) -> Iterator[list[ImageFile]]:
    """Part the images: `batch_size` at once, but no more than `BATCH_PIXELS`, or one."""
    batch: list[ImageFile] = []
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


def _read(path: str, sides: tuple[int, int], bit_depth: int, keep: bool) -> _Read | str:
    try:
        state = _state(path)  # before its content: a change meanwhile is then seen by the next run
        decoded = read_image(path, bit_depth=bit_depth)
    except DataError as error:
        return str(error).removeprefix(f"{path}: ")
    own = decoded.pixels
    nothing = dataclasses.replace(decoded, pixels=own[:0])  # what is said of it stays in memory until the end
    statistics = image_statistics(own)
    return _Read(resize(own, sides), own if keep else None, own.shape[:2], state, nothing, statistics)


def _is_current(results: Results, image: ImageFile) -> bool:
    row = results.rows.get(image.file)
    return row is not None and (row.bytes, row.modified_ns) == _state(image.path)


def _state(path: str) -> tuple[int, int]:
    """Return a file's size and time of change; impossible ones where there is no such file: `decode` says so then."""
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path for each of a million files is slow
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns
