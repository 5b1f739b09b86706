"""The folder that predictions are written to: rows as they come, files whole or not at all, continued after a kill.

OUT/
  prediction.json   the model, threshold and options that all rows have in common; the scale of 16 bit maps
  scores.csv        a row per image; a row is written after its files, so what a row names is complete
  .resume.csv       per row of scores.csv its file's absolute path, size and time of change, for a later run to compare
  regions.csv       a row per region of an image's map, and others; see `msad.bundle.record_files`
  skipped.csv       path and reason of what could not be decoded in the last run; no such file if there was nothing
  heatmaps/         a PNG per image: the image with its map over it
  maps/             a map per image at the image's own size, .png or .npy
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import importlib.metadata
import io
import json
import os
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from itertools import chain, count
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import numpy as np
from PIL import Image

from msad.bundle.drift import Drift, Values
from msad.bundle.heatmaps import overlay
from msad.bundle.map_scale import grey_step, to_grey
from msad.bundle.record_files import Entry, RecordFiles
from msad.errors import ConfigError, ResourceError
from msad.models.regions import Region

FORMAT = 1
MAPS = ("none", "png", "npy")


@dataclass(frozen=True)
class Settings:
    """What all rows of a folder have in common: results of other settings are not mixed with them.

    Parameters
    ----------
    model
        `Bundle.fingerprint`.
    source
        Where the model came from, for people: category, architecture and run ID.
    threshold
        Scores above it are called anomalous.
    pixel_threshold, smallest_area
        Connected pixels of a map above it are a region where they are as many as this.
    heatmaps, maps
        Which files are written per image; `maps` is one of `none`, `png`, `npy`.
    """

    model: str
    source: str
    threshold: float
    pixel_threshold: float
    smallest_area: int
    heatmaps: bool
    maps: str

    def differences(self, earlier: dict[str, Any]) -> list[str]:
        """Name each setting of `prediction.json` that is another one now, with both values."""
        found = []
        if earlier.get("model") != self.model:
            found.append(f"the model (then {earlier.get('source')}, now {self.source})")
        for name in ("threshold", "pixel_threshold", "smallest_area", "heatmaps", "maps"):
            then, now = earlier.get(name), getattr(self, name)
            if then != now:
                found.append(f"{name} (then {then}, now {now})")
        return found


@dataclass(frozen=True, slots=True)
class Row:
    """One scored image: its file, what the model says, the files written for it (below OUT, "" for none).

    `path` is what the user called the file, `file` its absolute path, whatever folder a run is started in. `bytes` and
    `modified_ns` are the image file's size and time of change when it was read. These three are in `.resume.csv`.
    """

    path: str
    score: float
    threshold: float
    verdict: str
    heatmap: str
    map: str
    file: str
    bytes: int
    modified_ns: int


RESUMING = ("path", "file", "bytes", "modified_ns")
COLUMNS = tuple(column.name for column in fields(Row) if column.name not in RESUMING[1:])


class Results:
    """The results in a folder, open for writing; use as a context manager.

    Parameters
    ----------
    out
        The folder; made if it is not there.
    settings
        What the rows have in common.
    overwrite
        Remove what an earlier run has written there, whatever its settings, instead of continuing it.

    Raises
    ------
    ConfigError
        The folder holds results of other settings, or a table that is not one of ours.
    ResourceError
        Another process is writing there.
    """

    def __init__(self, out: Path, settings: Settings, *, overwrite: bool = False) -> None:
        self.out, self.settings = out, settings
        out.mkdir(parents=True, exist_ok=True)
        self._lock = (out / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise ResourceError(
                f"{out}: another prediction is being written there; wait or give another --out"
            ) from None
        self._records = RecordFiles(out, _whole)
        self.rows = {row.file: row for row in _read_rows(self._scores, self._resume)}
        try:
            if overwrite:
                self._remove()
            self._refuse_others()
        except BaseException:
            self._lock.close()
            raise
        self._names = {file for row in self.rows.values() for file in (row.heatmap, row.map) if file}
        self._files = {row.path: row.file for row in self.rows.values()}
        self._table: TextIO | None = None
        self._known: TextIO | None = None
        self._skipped: TextIO | None = None

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in (self._table, self._known, self._skipped, self._records, self._lock):
            if file is not None:
                file.close()

    def start(self, changed: Iterable[str] = ()) -> None:
        """Write the settings and the table without the rows of `changed` files, ready for more rows."""
        for changed_file in changed:
            row = self.rows.pop(changed_file)
            self._names -= {row.heatmap, row.map}
            del self._files[row.path]
        self._describe({})
        for path, columns in ((self._resume, RESUMING), (self._scores, COLUMNS)):
            with _whole(path) as file, _open(file, "w") as table:
                _writer(table).writerow(columns)
                _writer(table).writerows(_cells(row, columns) for row in self.rows.values())
        self._records.start({row.path for row in self.rows.values()})
        (self.out / "skipped.csv").unlink(missing_ok=True)
        self._table, self._known = _open(self._scores, "a"), _open(self._resume, "a")

    def _describe(self, more: dict[str, Any]) -> None:
        description = {"format": FORMAT, **asdict(self.settings), "msad": importlib.metadata.version("msad")}
        if self.settings.maps == "png":
            description["map_scale"] = grey_step(self.settings.threshold)
        with _whole(self.out / "prediction.json") as file:
            file.write_text(json.dumps(description | more, indent=2) + "\n")

    def add(self, rows: list[Row], entries: list[Entry]) -> None:
        """Append rows whose files are written, with their regions; they are on their way to the disk afterwards."""
        assert self._table is not None and self._known is not None, "start() comes first"
        self._records.add(entries)
        for table, columns in ((self._known, RESUMING), (self._table, COLUMNS)):  # a row is known before it is there
            _writer(table).writerows(_cells(row, columns) for row in rows)
            table.flush()

    def finish(self, drift: Drift, held_out: Values | None) -> None:
        """Write what is made of all images when a run ends: COCO's json, and how they compare with the held-out ones.

        `held_out` is what they were compared with, which `msad drift` needs again.
        """
        settings = {name: getattr(self.settings, name) for name in ("source", "pixel_threshold", "smallest_area")}
        self._records.finish({"description": "regions of anomaly maps by msad", **settings})
        self._describe({"drift": drift.to_dict(), "held_out": held_out})

    def seen(self, paths: Container[str]) -> dict[str, list[float]]:
        """Return the scores and statistics of the images whose rows have these paths."""
        return self._records.seen(paths)

    @property
    def region_count(self) -> int:
        """Regions of all images that have a row."""
        return self._records.count

    def skip(self, path: str, reason: str) -> None:
        """Note an image that cannot be decoded."""
        if self._skipped is None:
            self._skipped = _open(self.out / "skipped.csv", "w")
            _writer(self._skipped).writerow(("path", "reason"))
        _writer(self._skipped).writerow((path, reason))
        self._skipped.flush()

    def label(self, path: str, file: str) -> str:
        """Return what a row calls a file: the path as given, unless another file has been called so already."""
        return path if self._files.setdefault(path, file) == file else file

    def names(self, image: Path) -> tuple[str, str]:
        """Choose the names of an image's heatmap and map, "" for what is not asked for; no two images get the same.

        Parameters
        ----------
        image
            The image's place below the folder that all images have in common; its suffix is kept only where it tells
            two images apart.
        """
        numbered = (image.with_name(f"{image.name}-{number}") for number in count(2))
        stems = chain((image.with_suffix(""), image), numbered)
        for stem in stems:
            heatmap = f"heatmaps/{stem}.png" if self.settings.heatmaps else ""
            anomaly_map = f"maps/{stem}.{self.settings.maps}" if self.settings.maps != "none" else ""
            if not self._names & {heatmap, anomaly_map}:
                break
        self._names |= {heatmap, anomaly_map} - {""}
        return heatmap, anomaly_map

    def write_files(
        self,
        row: Row,
        image: np.ndarray | None,
        anomaly_map: np.ndarray,
        regions: Sequence[Region],
        roi: np.ndarray | None,
    ) -> None:
        """Write the files that a row names: from uint8 H×W×3, float32 H×W of the same size, and the bundle's `roi`."""
        if row.heatmap:
            picture = overlay(image, anomaly_map, row.threshold, regions, roi)
            with _whole(self.out / row.heatmap) as file:
                Image.fromarray(picture).save(file, compress_level=1)
        if row.map:
            with _whole(self.out / row.map) as file:
                if self.settings.maps == "npy":
                    np.save(file, anomaly_map)
                else:
                    Image.fromarray(to_grey(anomaly_map, row.threshold)).save(file, compress_level=1)

    @property
    def _scores(self) -> Path:
        return self.out / "scores.csv"

    @property
    def _resume(self) -> Path:
        return self.out / ".resume.csv"

    def _refuse_others(self) -> None:
        ways = "give another --out, or --overwrite to replace what is there"
        try:
            earlier = json.loads((self.out / "prediction.json").read_text())
        except FileNotFoundError:
            if self._scores.exists():
                raise ConfigError(
                    f"{self._scores}: no prediction.json beside it says which model it is from; {ways}"
                ) from None
            return
        except ValueError as error:
            raise ConfigError(f"{self.out / 'prediction.json'}: damaged ({error}); {ways}") from None
        if self.rows and (differences := self.settings.differences(earlier)):
            raise ConfigError(f"{self.out} holds results that differ in {', '.join(differences)}: {ways}")

    def _remove(self) -> None:
        for row in self.rows.values():
            for file in (row.heatmap, row.map):
                if file and ".." not in Path(file).parts:
                    (self.out / file).unlink(missing_ok=True)
        for path in (self._scores, self._resume):
            path.unlink(missing_ok=True)
        self._records.remove()
        (self.out / "prediction.json").unlink(missing_ok=True)
        self.rows = {}


def _read_rows(scores: Path, resume: Path) -> list[Row]:
    """Read a table as far as it goes, with what is known of its files; an image of which nothing is has changed.

    A version before this one kept size and time in the table itself.
    """
    known = {path: state for path, *state in _lines(resume, len(RESUMING))}
    rows = []
    for path, score, threshold, verdict, heatmap, anomaly_map, *state in _lines(scores, len(COLUMNS)):
        file, size, modified = known.get(path) or (os.path.abspath(path), *(state or (-1, -1)))  # noqa: PTH100
        with contextlib.suppress(ValueError):  # the header, or not a row of ours
            values = float(score), float(threshold), verdict, heatmap, anomaly_map, file, int(size), int(modified)
            rows.append(Row(path, *values))
    return rows


def _lines(path: Path, columns: int) -> list[list[str]]:
    """Read the cells of a table's whole lines; a last one that a kill has cut off is none."""
    try:
        with _open(path, "r") as file:
            text = file.read()
    except FileNotFoundError:
        return []
    lines = csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
    return [cells for cells in lines if len(cells) in (columns, columns + 2)]


def _cells(row: Row, columns: Iterable[str]) -> list[Any]:
    return [getattr(row, column) for column in columns]  # csv writes a float as repr does: no digit is lost


def _writer(file: TextIO) -> Any:
    return csv.writer(file, lineterminator="\n")


def _open(path: Path, mode: str) -> TextIO:
    return path.open(mode, newline="", encoding="utf-8", errors="surrogateescape")  # a file's name may be no UTF-8


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Give a name to write to; what is there in the end takes the place of `path` in one step."""
    part = path.with_name(f".part-{path.name}")
    part.parent.mkdir(parents=True, exist_ok=True)
    yield part
    part.replace(path)
