"""VisA as it is distributed: images by label, and lists that say which are for training and which for the test.

ROOT/split_csv/1cls.csv                       object,split,label,image,mask: the one-class protocol
ROOT/CATEGORY/Data/Images/{Normal,Anomaly}/*.JPG
ROOT/CATEGORY/Data/Masks/Anomaly/*.png        kinds of defect are numbered from 1 on

Y. Zou et al., "SPot-the-Difference Self-supervised Pre-training for Anomaly Detection and Segmentation", ECCV 2022.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from msad.data_io.errors import DataError
from msad.data_io.files import list_folders, list_images
from msad.data_io.layouts.base import Layout
from msad.data_io.layouts.sample import Sample
from msad.data_io.report import Problem

SPLIT_FILE = Path("split_csv") / "1cls.csv"
ANOMALY = "anomaly"
COLUMNS = {"object", "split", "label", "image", "mask"}


class Visa(Layout):
    """Train and test by the authors' list; an image that is not in it is not read."""

    name = "visa"
    signature = "CATEGORY/Data/Images/Normal, with split_csv/1cls.csv beside the categories"
    folders_beside_categories = ("split_csv",)
    expects_test = f"rows with the split test in {SPLIT_FILE}"

    def categories(self, root: Path) -> list[str]:
        kinds = ("Normal", "Anomaly")
        return [
            path.name for path in list_folders(root) if any((path / "Data/Images" / kind).is_dir() for kind in kinds)
        ]

    def train(self, root: Path, category: str) -> list[Path]:
        rows = _rows(root, category)
        return sorted(root / row["image"] for row in rows if (row["split"], row["label"]) == ("train", "normal"))

    def test(self, root: Path, category: str) -> list[Sample]:
        rows = [row for row in _rows(root, category) if row["split"] == "test"]
        good = sorted(root / row["image"] for row in rows if row["label"] == "normal")
        masks = {root / row["image"]: row["mask"] for row in rows if row["label"] != "normal"}
        existing = {path: root / mask if mask and (root / mask).is_file() else None for path, mask in masks.items()}
        return [*map(Sample, good), *(Sample(path, ANOMALY, existing[path]) for path in sorted(existing))]

    def train_folder(self, root: Path, category: str) -> Path:
        return root / category / "Data" / "Images" / "Normal"

    def test_folder(self, root: Path, category: str) -> Path:
        return root / category / "Data" / "Images"

    def expected_mask(self, sample: Sample) -> str:
        return f"Data/Masks/Anomaly/{sample.path.stem}.png"

    def faults(self, root: Path, category: str) -> Iterator[Problem]:
        yield from super().faults(root, category)
        listed = {root / row[column] for row in _rows(root, category) for column in ("image", "mask")}
        images = self.test_folder(root, category)
        for folder in (images / "Normal", images / "Anomaly", images.parent / "Masks" / "Anomaly"):
            if extra := [path for path in list_images(folder) if path not in listed]:
                what = f"{len(extra)} files are not in {SPLIT_FILE} and are ignored, {extra[0].name} the first of them"
                yield Problem("warning", folder, what)


def _rows(root: Path, category: str) -> list[dict[str, str]]:
    path = root / SPLIT_FILE
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; it says which images are for training: put it back, it is part of the download"
        ) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}); take it from the download again") from error
    missing = COLUMNS - set(rows[0] if rows else ())
    if missing:
        raise DataError(f"{path}: has no column {', '.join(sorted(missing))}; take it from the download again")
    chosen = [row for row in rows if row["object"] == category]
    if not chosen:
        raise DataError(f"{path}: has no row for {category}; take it from the download again, or remove the folder")
    for row in chosen:
        # The list is untrusted input: it must not lead out of the dataset.
        if any(
            Path(row[column] or "").is_absolute() or ".." in Path(row[column] or "").parts
            for column in ("image", "mask")
        ):
            raise DataError(f"{path}: {row['image']} leads out of the dataset; take the list from the download again")
    return chosen
