"""A csv of paths and labels: one row per image, its columns found by their names or said.

path,label,split,mask,category
images/001.png,good,train,,
images/007.png,scratch,test,masks/007.png,

Only path and label must be there. Paths are relative to the csv or to its product's folder; commas, semicolons or tabs
part the columns. The file's own name may say the split: train.csv, test.csv.
"""

from __future__ import annotations

import csv
from pathlib import Path, PureWindowsPath

from msad.data_io.errors import DataError
from msad.data_io.layouts.annotated import Annotated, Row
from msad.data_io.layouts.sample import GOOD, Sample

COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "filepath", "image", "image_path"),
    "label": ("label", "class", "target", "defect", "defect_type", "type"),
    "split": ("split", "subset", "set", "partition"),
    "mask": ("mask", "mask_path"),
    "category": ("category", "product", "object"),
}
"""What each column is called, in any case; a setting of the same name, but for `columns` of splits, names another."""

NEEDED = ("path", "label")


class CsvList(Annotated):
    """Labels, splits and masks by the rows of csv files."""

    name = "csv"
    signature = "a csv with the columns path and label"
    mask_threshold = 127
    patterns = ("*.csv",)
    settings_known = (*Annotated.settings_known, *COLUMNS)

    def expected_mask(self, sample: Sample) -> str:
        return "a path in the column mask"

    def read(self, file: Path, product: Path) -> list[Row]:
        rows = _rows(file)
        columns = {name: self._column(name, list(rows[0]), file) for name in COLUMNS}
        labels = [(row[columns["label"]] or "").strip() for row in rows]
        if bare := [number for number, label in enumerate(labels, 2) if not label]:
            raise DataError(f"{file}: {len(bare)} rows have no label, line {bare[0]} the first; say it, or remove them")
        good = self.good_labels({*labels})
        found = []
        for number, (row, label) in enumerate(zip(rows, labels, strict=True), 2):
            cells = {name: (row[column] or "").strip() if column else "" for name, column in columns.items()}
            if not cells["path"]:
                raise DataError(f"{file}: line {number} has no path; say it, or remove the line")
            if "/" in cells["category"] or cells["category"] in (".", ".."):
                raise DataError(f"{file}: line {number}: '{cells['category']}' is no name of a category; mend it")
            mask = self._file(cells["mask"], file, product) if cells["mask"] and label not in good else None
            defect_type = GOOD if label in good else label.replace("/", "-")
            sample = Sample(self._file(cells["path"], file, product), defect_type, mask)
            split = self.split_of(cells["split"] if columns["split"] else None, file, product)
            found.append(Row(cells["category"] or None, split, sample))
        return found

    def _column(self, name: str, header: list[str], file: Path) -> str | None:
        """The column that holds something; None where none does and none must."""
        if said := self.said(name):
            if said not in header:
                raise DataError(f"{file}: has no column '{said}'; there are {', '.join(header)}")
            return said
        found = [column for column in header if column.strip().lower() in COLUMNS[name]]
        if len(found) > 1 or (name in NEEDED and not found):
            several = f"{' and '.join(found)} may be the {name}" if found else f"no column is called {name}"
            raise DataError(
                f"{file}: {several}; say which it is with --layout {self.more(f'{name}=COLUMN')}, of "
                f"{', '.join(header)}"
            )
        return found[0] if found else None

    def _file(self, text: str, file: Path, product: Path) -> Path:
        relative = PureWindowsPath(text).as_posix() if "\\" in text else text
        places = [place / relative for place in (file.parent, product)]
        return self.inside(next((path for path in places if path.exists()), places[-1]), file, product)


def _rows(file: Path) -> list[dict[str, str]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            header = lines.readline()
            lines.seek(0)
            delimiter = max(",;\t", key=header.count)
            rows = list(csv.DictReader(lines, delimiter=delimiter))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read ({error}); save it as csv in UTF-8") from error
    if not rows:
        raise DataError(f"{file}: holds no rows; it needs a line of column names and a line per image")
    if short := next((number for number, row in enumerate(rows, 2) if None in row or None in row.values()), None):
        raise DataError(f"{file}: line {short} has more or fewer columns than the first line; mend it")
    return rows
