"""KolektorSDD and KolektorSDD2: every image has a mask beside it, and an image is good where its mask is all black.

KolektorSDD: ROOT/kos01..kos50/PartN.jpg with PartN_label.bmp. D. Tabernik et al., "Segmentation-based deep-learning
approach for surface-defect detection", J. Intelligent Manufacturing 2020. It has no split of its own; the authors
cross-validate in three folds and keep the images of one item together. Here the items whose number is divisible by
three are the test, one fold's share, and the good images of the others are for training.

KolektorSDD2: ROOT/{train,test}/N.png with N_GT.png. J. Božič et al., "Mixed supervision for surface-defect detection",
Computers in Industry 2021. The good images of train/ are for training, all of test/ for the test.

In both the defective images of the training part are left out: neither learned from nor measured on.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path

from msad.data_io.blank import marked
from msad.data_io.files import list_folders, list_images
from msad.data_io.layouts.base import Layout
from msad.data_io.layouts.faults import ROI, good_image_faults, stranger_faults
from msad.data_io.layouts.known import FOLDER
from msad.data_io.layouts.sample import Sample
from msad.data_io.report import Problem

DEFECT = "defect"
ITEM = re.compile(r"kos(\d+)")


class Kolektor(Layout):
    """One category; the label of an image is whether its mask marks anything."""

    test_needs_opening = True
    mask_suffix: str  # of the mask's name, after the image's without suffix
    expects_test = "images with their masks beside them"

    @abstractmethod
    def _folders(self, root: Path, split: str) -> list[Path]:
        """The folders of a split's images."""

    def train(self, root: Path, category: str) -> list[Path]:
        return [sample.path for sample in self._samples(root, "train") if not sample.label]

    def test(self, root: Path, category: str) -> list[Sample]:
        return sorted(self._samples(root, "test"), key=lambda sample: sample.label)

    def roi(self, root: Path, category: str) -> Path:
        return root / ROI

    def train_folder(self, root: Path, category: str) -> Path:
        return root

    def test_folder(self, root: Path, category: str) -> Path:
        return root

    def validation_folder(self, root: Path, category: str) -> Path:
        return root / FOLDER

    def expected_mask(self, sample: Sample) -> str:
        return f"{sample.path.parent.name}/{sample.path.stem}{self.mask_suffix}"

    def strange_folders(self, root: Path) -> Iterator[Problem]:
        known = {*self._folders(root, "train"), *self._folders(root, "test"), root / FOLDER}
        for folder in list_folders(root):
            if folder not in known:
                yield Problem("warning", folder, f"is not known to the layout {self.name} and is ignored")

    def faults(self, root: Path, category: str) -> Iterator[Problem]:
        yield from good_image_faults(self.train_folder(root, category), len(self.train(root, category)))
        if not any(self._pairs(root, "test")):
            what = "no test images there; a model can be searched but not be measured"
            yield Problem("warning", self.test_folder(root, category), what)
        for folder in self._folders(root, "train") + self._folders(root, "test"):
            yield from stranger_faults(folder)
            images = {path for path in list_images(folder) if not path.name.endswith(self.mask_suffix)}
            names = {path.stem for path in images}
            for path in list_images(folder):
                if path not in images and path.name.removesuffix(self.mask_suffix) not in names:
                    yield Problem("error", path, "mask without its image beside it; remove it or put the image back")
        for path, mask in [*self._pairs(root, "train"), *self._pairs(root, "test")]:
            if not mask.is_file():
                what = f"has no mask {mask.name} beside it, so nobody knows whether it is good; put it back"
                yield Problem("error", path, what)

    def _pairs(self, root: Path, split: str) -> list[tuple[Path, Path]]:
        return [
            (path, path.with_name(f"{path.stem}{self.mask_suffix}"))
            for folder in self._folders(root, split)
            for path in list_images(folder)
            if not path.name.endswith(self.mask_suffix)
        ]

    def _samples(self, root: Path, split: str) -> list[Sample]:
        """The images of a split that have a mask, labelled by it."""
        pairs = [pair for pair in self._pairs(root, split) if pair[1].is_file()]
        defective = marked([mask for _, mask in pairs])
        return [
            Sample(path, DEFECT, mask) if found else Sample(path)
            for (path, mask), found in zip(pairs, defective, strict=True)
        ]


class KolektorSdd(Kolektor):
    """A folder per item (commutator), with its images and masks."""

    name = "kolektor_sdd"
    signature = "kos01, kos02, ... with Part0.jpg and Part0_label.bmp in them"
    mask_suffix = "_label.bmp"

    def categories(self, root: Path) -> list[str]:
        items = [folder for folder in list_folders(root) if ITEM.fullmatch(folder.name)]
        return [self.name] if items else []

    def _folders(self, root: Path, split: str) -> list[Path]:
        items = [(ITEM.fullmatch(folder.name), folder) for folder in list_folders(root)]
        return [folder for match, folder in items if match and (int(match[1]) % 3 == 0) == (split == "test")]


class KolektorSdd2(Kolektor):
    """The authors' own two folders."""

    name = "kolektor_sdd2"
    signature = "train and test with 10000.png and 10000_GT.png in them"
    mask_suffix = "_GT.png"

    def categories(self, root: Path) -> list[str]:
        parts = [root / part for part in ("train", "test") if (root / part).is_dir()]
        found = any(path.name.endswith(self.mask_suffix) for part in parts for path in part.iterdir())
        return [self.name] if found else []

    def train_folder(self, root: Path, category: str) -> Path:
        return root / "train"

    def test_folder(self, root: Path, category: str) -> Path:
        return root / "test"

    def _folders(self, root: Path, split: str) -> list[Path]:
        return [root / split]
