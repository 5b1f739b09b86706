"""One's own images: a folder of good ones, and what else there is.

ROOT/good/*                   good images; the only thing that must be there
ROOT/bad/*                    defective ones, also in a folder per type: bad/scratch/*
ROOT/masks/*                  their masks: NAME.png or NAME_mask.png, also in a folder per type
ROOT/good_test/*              good images to measure on that are never learned from
ROOT/validation/*             known defects, see `msad.data_io.layouts.known`

Without `good_test`, and where there are defective images, a fifth of the good images (by the hash of their names) is
kept for the test. Several products are several such folders: ROOT/PRODUCT/good, ROOT/PRODUCT/bad, ...; else the product
is called as the root is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from msad.data_io.files import images_below, list_folders, list_images
from msad.data_io.layouts.base import Layout, hold_out
from msad.data_io.layouts.faults import (
    FEWEST_GOOD_IMAGES,
    NAMES,
    ROI,
    good_image_faults,
    loose_faults,
    nested_faults,
    orphan_faults,
    stranger_faults,
    test_faults,
)
from msad.data_io.layouts.known import FOLDER, masks_in, name_below
from msad.data_io.layouts.sample import Sample
from msad.data_io.report import Problem

# A folder of these names with good/ in it is part of another layout and no product.
NO_PRODUCTS = ("train", "test", "test_public", "validation", "ground_truth")
TEST_SHARE = 0.2


class Folder(Layout):
    """Good images, and optionally defective ones, masks and good test images."""

    name = "folder"
    signature = "good (or ok, normal) with images, optionally bad and masks beside it; or PRODUCT/good"
    general = True
    mask_threshold = 127
    expects_test = "a folder bad with defective images, also in a folder per type"

    def categories(self, root: Path) -> list[str]:
        if _part(root, "good"):
            return [root.resolve().name or "images"]
        products = [folder for folder in list_folders(root) if folder.name.lower() not in NO_PRODUCTS]
        return [folder.name for folder in products if _part(folder, "good")]

    def train(self, root: Path, category: str) -> list[Path]:
        return _good(_product(root, category))[0]

    def test(self, root: Path, category: str) -> list[Sample]:
        product = _product(root, category)
        masks = _masks(product)
        samples = []
        bad = _part(product, "bad")
        for path, defect_type in _bad(product):
            name = name_below(path, bad)  # with its type in front, where it has one
            flat = name.removeprefix(f"{defect_type}/")
            names = [f"{one}{end}" for one in (f"{defect_type}/{flat}", flat) for end in ("_mask", "")]
            samples.append(Sample(path, defect_type, next((masks[name] for name in names if name in masks), None)))
        return [*map(Sample, _good(product)[1]), *samples]

    def roi(self, root: Path, category: str) -> Path:
        return _product(root, category) / ROI

    def train_folder(self, root: Path, category: str) -> Path:
        product = _product(root, category)
        return _part(product, "good") or product / "good"

    def test_folder(self, root: Path, category: str) -> Path:
        product = _product(root, category)
        return _part(product, "bad") or product / "bad"

    def validation_folder(self, root: Path, category: str) -> Path:
        return _product(root, category) / FOLDER

    def expected_mask(self, sample: Sample) -> str:
        return f"masks/{sample.path.stem}.png or masks/{sample.defect_type}/{sample.path.stem}.png"

    def strange_folders(self, root: Path) -> Iterator[Problem]:
        products = [_product(root, category) for category in self.categories(root)]
        for product in products:
            known = [*(_part(product, part) for part in NAMES), product / FOLDER]
            for folder in list_folders(product):
                if folder not in known:
                    yield Problem(
                        "warning", folder, "is ignored: there may be good, bad, masks, good_test and validation"
                    )
        if root not in products:
            for folder in list_folders(root):
                if folder not in products:
                    yield Problem("warning", folder, "is no product (no good/ in it) and is ignored")

    def faults(self, root: Path, category: str) -> Iterator[Problem]:
        product, samples = _product(root, category), self.test(root, category)
        good = self.train_folder(root, category)
        yield from good_image_faults(good, len(self.train(root, category)))
        yield from test_faults(self.test_folder(root, category), samples)
        yield from loose_faults(product, f"{product / 'good'}, or into bad where they show a defect")
        for part in ("good", "good_test"):
            if folder := _part(product, part):
                yield from nested_faults(folder, good=True)
        for folder in filter(None, (_part(product, "bad"), _part(product, "masks"))):
            types = list_folders(folder)
            yield from stranger_faults(folder, known=[part.name for part in types])
            for part in types:
                yield from nested_faults(part)
        masks = _part(product, "masks")
        uses = Counter(sample.mask_path for sample in samples if sample.mask_path)
        orphans = [path for path in _masks(product).values() if path not in uses]
        if masks:
            yield from orphan_faults(masks, orphans, self.test_folder(root, category), "NAME.png or NAME_mask.png")
        for path, count in uses.items():
            if count > 1:
                yield Problem("error", path, "is the mask of two images of one name; keep masks in a folder per type")


def _part(product: Path, part: str) -> Path | None:
    """The folder of a part under whichever of its names it has."""
    found = {folder.name.lower(): folder for folder in list_folders(product)}
    return next((found[name] for name in NAMES[part] if name in found), None)


def _product(root: Path, category: str) -> Path:
    return root if _part(root, "good") else root / category


def _good(product: Path) -> tuple[list[Path], list[Path]]:
    """The good images for training and those for the test."""
    folder, test_folder = _part(product, "good"), _part(product, "good_test")
    images = images_below(folder) if folder else []
    if test_folder:
        return images, images_below(test_folder)
    return hold_out(images, TEST_SHARE, leave=FEWEST_GOOD_IMAGES) if _bad(product) else (images, [])


def _bad(product: Path) -> list[tuple[Path, str]]:
    """Each defective image with its type: the folder of `bad` that it lies in, or below."""
    folder = _part(product, "bad")
    if folder is None:
        return []
    typed = [(path, part.name) for part in list_folders(folder) for path in images_below(part)]
    return [*((path, folder.name) for path in list_images(folder)), *typed]


def _masks(product: Path) -> dict[str, Path]:
    """Masks by `NAME` or `TYPE/NAME`, without suffix."""
    folder = _part(product, "masks")
    return dict(masks_in(folder)) if folder else {}
