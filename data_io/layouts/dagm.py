"""DAGM 2007, the competition's data: ten classes of generated textures, each with its own training and test images.

ROOT/Class1..Class10/{Train,Test}/0001.PNG
ROOT/ClassN/{Train,Test}/Label/Labels.txt         a row per image: number, 1 where defective, file, -, mask
ROOT/ClassN/{Train,Test}/Label/0576_label.PNG     of the defective ones: an ellipse around the defect (a weak label)

M. Wieler, T. Hahn, "Weakly Supervised Learning for Industrial Optical Inspection", DAGM 2007. The good images of Train
are for training, all of Test for the test; the defective images of Train are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from msad.data_io.errors import DataError
from msad.data_io.files import list_folders, list_images
from msad.data_io.layouts.base import Layout
from msad.data_io.layouts.faults import ROI, stranger_faults
from msad.data_io.layouts.known import FOLDER
from msad.data_io.layouts.sample import Sample
from msad.data_io.report import Problem

DEFECT = "defect"
LABELS = Path("Label") / "Labels.txt"
CLASS = re.compile(r"Class\d+")


class Dagm(Layout):
    """Labels by each folder's Labels.txt."""

    name = "dagm"
    signature = "Class1/Train, Class1/Test, Class2/Train, ..."
    test_needs_opening = True
    expects_test = "Test/*.PNG and Test/Label/Labels.txt"

    def categories(self, root: Path) -> list[str]:
        folders = [folder.name for folder in list_folders(root) if CLASS.fullmatch(folder.name)]
        found = [name for name in folders if any((_folder(root, name) / part).is_dir() for part in ("Train", "Test"))]
        return sorted(found, key=lambda name: int(name.removeprefix("Class")))

    def train(self, root: Path, category: str) -> list[Path]:
        return [sample.path for sample in _samples(self.train_folder(root, category)) if not sample.label]

    def test(self, root: Path, category: str) -> list[Sample]:
        return sorted(_samples(self.test_folder(root, category)), key=lambda sample: sample.label)

    def roi(self, root: Path, category: str) -> Path:
        return _folder(root, category) / ROI

    def train_folder(self, root: Path, category: str) -> Path:
        return _folder(root, category) / "Train"

    def test_folder(self, root: Path, category: str) -> Path:
        return _folder(root, category) / "Test"

    def validation_folder(self, root: Path, category: str) -> Path:
        return _folder(root, category) / FOLDER

    def expected_mask(self, sample: Sample) -> str:
        return f"Label/{sample.path.stem}_label.PNG"

    def faults(self, root: Path, category: str) -> Iterator[Problem]:
        yield from super().faults(root, category)
        train, test = self.train_folder(root, category), self.test_folder(root, category)
        if not list_images(test):
            yield Problem("warning", test, "no test images there; a model can be searched but not be measured")
        for folder in (train, test):
            yield from stranger_faults(folder, known=("Label",))
            names = {path.stem for path in list_images(folder)}
            for mask in list_images(folder / "Label"):
                if mask.stem.removesuffix("_label") not in names:
                    yield Problem("error", mask, f"mask without its image in {folder.name}; remove it or put it back")
        flagged = _flagged(train)
        for name in sorted(flagged - {path.name for path in list_images(train)}):
            yield Problem("warning", train / name, f"no such image, but {LABELS} calls it defective")
        for path in list_images(train):
            if path.name not in flagged and _mask(path):
                yield Problem("error", path, f"has a mask, but {LABELS} calls it good; mend either")


def _folder(root: Path, category: str) -> Path:
    """The class's folder; some copies have it twice, Class1/Class1."""
    twice = root / category / category
    return twice if twice.is_dir() else root / category


def _samples(folder: Path) -> list[Sample]:
    images = list_images(folder)
    flagged = _flagged(folder) if images else set()
    # An image that either of the two calls defective is not learned from; the check tells where they differ.
    masks = {path: _mask(path) for path in images}
    return [
        Sample(path, DEFECT, masks[path]) if path.name in flagged or masks[path] else Sample(path) for path in images
    ]


def _mask(path: Path) -> Path | None:
    mask = path.parent / "Label" / f"{path.stem}_label{path.suffix}"
    return mask if mask.is_file() else None


def _flagged(folder: Path) -> set[str]:
    """Names of the images that Labels.txt calls defective."""
    path = folder / LABELS
    try:
        rows = [line.split() for line in path.read_text(encoding="latin-1").splitlines()]
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; it says which images are good: put it back, it is part of the download"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); take it from the download again") from error
    return {row[2] for row in rows if len(row) >= 3 and row[1] == "1"}  # the first line is a single number
