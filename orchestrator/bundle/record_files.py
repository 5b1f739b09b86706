"""What is known of each predicted image beside its score: its regions and its plain statistics, as tables and as COCO.

OUT/
  .records.jsonl   a line per image, written before its row in scores.csv: what a later run needs to know
  regions.csv      a row per region, written with it
  statistics.csv   a row per image, likewise; see `msad.data_io.image_statistics`
  regions.json     all images and regions in the form of COCO (cocodataset.org/#format-data), made when a run ends

Boxes and masks are in the image's own pixels, as it is seen: turned as its file says.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from msad.data_io.image_statistics import STATISTICS
from msad.models.regions import FIGURES, Region

COLUMNS = ("path", "verdict", "region", *FIGURES)
STATISTICS_COLUMNS = ("path", "changed", "score", "verdict", *STATISTICS)
CATEGORY = {"id": 1, "name": "defect"}

Entry = dict[str, Any]
"""An image: what its row says, its `height` and `width`, when its file was `changed`, and more.

`statistics` and `regions`, the largest first.
"""


def make_entry(
    named: Mapping[str, Any],
    modified_ns: int,
    height_width: tuple[int, int],
    statistics: Mapping[str, float],
    regions: Sequence[Region],
) -> Entry:
    """Return an image as JSON keeps it, each region with its mask as COCO's run lengths.

    `named` holds its `path`, `verdict` and `score`; the rest is what was found of it.
    """
    height, width = height_width
    changed = datetime.fromtimestamp(modified_ns / 1e9, UTC).isoformat(timespec="milliseconds")
    found = [one.to_dict() | {"counts": run_lengths(one, height_width)} for one in regions]
    sizes = {"height": height, "width": width, "changed": changed}
    return dict(named) | sizes | {"statistics": dict(statistics), "regions": found}


def run_lengths(region: Region, height_width: tuple[int, int]) -> list[int]:
    """Return a region's mask in its image as COCO's uncompressed run lengths: down the columns, outside first."""
    height, width = height_width
    columns, rows = np.nonzero(region.mask.T)
    places = (columns + region.x) * height + rows + region.y
    gaps = np.flatnonzero(np.diff(places) > 1)
    begins = places[np.concatenate([[0], gaps + 1])]
    ends = places[np.concatenate([gaps, [len(places) - 1]])] + 1
    edges = np.stack([begins, ends], axis=1).ravel()
    rest = height * width - int(edges[-1])
    return [*np.diff(edges, prepend=0).tolist(), *([rest] if rest else [])]


class RecordFiles:
    """The files of one folder, open for writing once `start` was called.

    Parameters
    ----------
    out
        The folder.
    whole
        Gives a name to write to, whose file takes the place of the path in one step, as a context.

    Attributes
    ----------
    count
        Regions in the files.
    """

    def __init__(self, out: Path, whole: Callable[[Path], Any]) -> None:
        names = (".records.jsonl", "regions.csv", "statistics.csv", "regions.json")
        self._known, self._table, self._statistics, self._coco = (out / name for name in names)
        self._whole = whole
        self._open: list[TextIO] = []
        self.count = 0

    def start(self, kept: Container[str]) -> None:
        """Keep what is known of the images whose paths are among `kept`, and be ready for more."""
        with (
            self._whole(self._known) as known,
            self._whole(self._table) as table,
            self._whole(self._statistics) as statistics,
            _opened(known, "w") as lines,
            _opened(table, "w") as rows,
            _opened(statistics, "w") as values,
        ):
            csv.writer(rows, lineterminator="\n").writerow(COLUMNS)
            csv.writer(values, lineterminator="\n").writerow(STATISTICS_COLUMNS)
            self._write((entry for entry in self._entries() if entry["path"] in kept), lines, rows, values)
        self._coco.unlink(missing_ok=True)  # of fewer images, or others
        self._open = [_opened(path, "a") for path in (self._known, self._table, self._statistics)]

    def add(self, entries: Iterable[Entry]) -> None:
        """Append images with their regions."""
        self._write(entries, *self._open)
        for file in self._open:
            file.flush()

    def finish(self, about: dict[str, Any]) -> None:
        """Write COCO's json of all images; `about` is said in its `info`."""
        with self._whole(self._coco) as path, path.open("w") as file:
            file.write('{"info": ' + json.dumps(about))
            file.write(f', "categories": {json.dumps([CATEGORY])}, "images": [')
            _write_list(file, (_image(number, entry) for number, entry in enumerate(self._entries(), 1)))
            file.write('], "annotations": [')
            _write_list(file, self._annotations())
            file.write("]}\n")

    def close(self) -> None:
        """Close the files; nothing is lost by it."""
        for file in self._open:
            file.close()

    def remove(self) -> None:
        """Delete all files."""
        for path in (self._known, self._table, self._statistics, self._coco):
            path.unlink(missing_ok=True)

    def seen(self, paths: Container[str]) -> dict[str, list[float]]:
        """Return scores and statistics of the images with these paths, as `msad.bundle.drift` compares them."""
        found: dict[str, list[float]] = {name: [] for name in ("score", *STATISTICS)}
        for entry in self._entries():
            if entry["path"] in paths:
                found["score"].append(entry["score"])
                for name in STATISTICS:
                    found[name].append(entry["statistics"][name])
        return found

    def _write(self, entries: Iterable[Entry], lines: TextIO, rows: TextIO, values: TextIO) -> None:
        table, statistics = (csv.writer(file, lineterminator="\n") for file in (rows, values))
        for entry in entries:
            lines.write(json.dumps(entry) + "\n")
            measured = [entry["statistics"][name] for name in STATISTICS]
            statistics.writerow([*(entry[name] for name in STATISTICS_COLUMNS[:4]), *measured])
            self.count += len(entry["regions"])
            for number, region in enumerate(entry["regions"], 1):
                table.writerow([entry["path"], entry["verdict"], number, *(region[name] for name in FIGURES)])

    def _entries(self) -> Iterator[Entry]:
        """Read what is known, up to a last line that a kill has cut off."""
        if not self._known.exists():
            return
        with _opened(self._known, "r") as lines:
            for line in lines:
                if line.endswith("\n"):
                    yield json.loads(line)

    def _annotations(self) -> Iterator[dict[str, Any]]:
        number = 0
        for image, entry in enumerate(self._entries(), 1):
            for region in entry["regions"]:
                number += 1
                yield {
                    "id": number,
                    "image_id": image,
                    "category_id": CATEGORY["id"],
                    "bbox": [region[name] for name in ("x", "y", "width", "height")],
                    "area": region["area"],
                    "segmentation": {"size": [entry["height"], entry["width"]], "counts": region["counts"]},
                    "iscrowd": 0,
                    "score": region["peak"],
                    "mean_score": region["mean"],
                }


def _image(number: int, entry: Entry) -> dict[str, Any]:
    size = {name: entry[name] for name in ("width", "height")}
    return {"id": number, "file_name": entry["path"], **size, "score": entry["score"], "verdict": entry["verdict"]}


def _write_list(file: TextIO, items: Iterable[dict[str, Any]]) -> None:
    for number, item in enumerate(items):
        file.write((",\n" if number else "\n") + json.dumps(item))


def _opened(path: Path, mode: str) -> TextIO:
    return path.open(mode, newline="", encoding="utf-8", errors="surrogateescape")  # a file's name may be no UTF-8
