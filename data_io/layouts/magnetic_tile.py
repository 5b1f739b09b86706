"""Magnetic Tile Defects, the authors' folders: an image and its mask have one name and lie side by side.

ROOT/MT_Free/Imgs/exp1_num_10181.{jpg,png}                              good tiles; their masks are all black
ROOT/MT_{Blowhole,Break,Crack,Fray,Uneven}/Imgs/exp1_num_4727.{jpg,png}

Y. Huang, C. Qiu, K. Yuan, "Surface defect saliency of magnetic tile", The Visual Computer 2020. It has no split. Where
the list that M. Rudolph et al. ("Same Same But DifferNet", WACV 2021) published lies in the root as
mtd_train_filenames.txt, its images are for training; else 80 % of MT_Free by the hash of their names. The other good
images and all defective ones are the test.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from msad.data_io.files import list_folders, list_images
from msad.data_io.layouts.base import Layout, hold_out
from msad.data_io.layouts.faults import ROI, good_image_faults, stranger_faults, test_faults
from msad.data_io.layouts.known import FOLDER
from msad.data_io.layouts.sample import Sample
from msad.data_io.report import Problem

TRAIN_LIST = "mtd_train_filenames.txt"
FREE = "MT_Free"
TEST_SHARE = 0.2


class MagneticTile(Layout):
    """One category; jpg files are images, png files masks."""

    name = "magnetic_tile"
    signature = "MT_Free/Imgs, MT_Blowhole/Imgs, ..."
    mask_threshold = 127
    expects_test = "MT_Blowhole/Imgs, MT_Break/Imgs, ..."

    def categories(self, root: Path) -> list[str]:
        return [self.name] if _folders(root) else []

    def train(self, root: Path, category: str) -> list[Path]:
        return _good(root)[0]

    def test(self, root: Path, category: str) -> list[Sample]:
        samples = [Sample(path) for path in _good(root)[1]]
        for folder in _folders(root):
            if folder.name != FREE:
                defect_type = folder.name.removeprefix("MT_").lower()
                samples += [Sample(path, defect_type, _mask(path)) for path in _images(folder)]
        return samples

    def roi(self, root: Path, category: str) -> Path:
        return root / ROI

    def train_folder(self, root: Path, category: str) -> Path:
        return root / FREE / "Imgs"

    def test_folder(self, root: Path, category: str) -> Path:
        return root

    def validation_folder(self, root: Path, category: str) -> Path:
        return root / FOLDER

    def expected_mask(self, sample: Sample) -> str:
        return f"{sample.path.stem}.png beside it"

    def strange_folders(self, root: Path) -> Iterator[Problem]:
        known = [*_folders(root), root / FOLDER]
        for folder in list_folders(root):
            if folder not in known:
                what = "is not known to the layout magnetic_tile (no MT_.../Imgs) and is ignored"
                yield Problem("warning", folder, what)

    def faults(self, root: Path, category: str) -> Iterator[Problem]:
        train, test = self.train(root, category), self.test(root, category)
        yield from good_image_faults(self.train_folder(root, category), len(train))
        yield from test_faults(root, test)
        images = {*train, *(sample.path for sample in test)}
        for folder in _folders(root):
            yield from stranger_faults(folder / "Imgs")
            names = {path.stem for path in _images(folder)}
            for path in list_images(folder / "Imgs"):
                if path not in images and path.stem not in names:
                    yield Problem("error", path, "mask without its image beside it; remove it or put the image back")
        listed = _listed(root)
        if missing := sorted((listed or set()) - {path.name for path in _images(root / FREE)}):
            what = f"lists {len(missing)} images that are not in {FREE}/Imgs, {missing[0]} the first of them"
            yield Problem("warning", root / TRAIN_LIST, what)


def _folders(root: Path) -> list[Path]:
    return [folder for folder in list_folders(root) if folder.name.startswith("MT_") and (folder / "Imgs").is_dir()]


def _images(folder: Path) -> list[Path]:
    return [path for path in list_images(folder / "Imgs") if path.suffix.lower() != ".png"]


def _mask(path: Path) -> Path | None:
    mask = path.with_suffix(".png")
    return mask if mask.is_file() else None


def _listed(root: Path) -> set[str] | None:
    path = root / TRAIN_LIST
    return set(path.read_text(encoding="utf-8").split()) if path.is_file() else None


def _good(root: Path) -> tuple[list[Path], list[Path]]:
    """The good images for training and those for the test."""
    images = _images(root / FREE)
    listed = _listed(root)
    if listed is None:
        return hold_out(images, TEST_SHARE)
    return [path for path in images if path.name in listed], [path for path in images if path.name not in listed]
