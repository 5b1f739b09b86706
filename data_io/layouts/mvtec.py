"""MVTec AD and the datasets that are laid out nearly as it is: MPDD, MVTec AD 2, MVTec LOCO AD, BTAD.

ROOT/CATEGORY/train/good/*            good images to learn from
ROOT/CATEGORY/test/good/*             good images to be measured on
ROOT/CATEGORY/test/DEFECT/*           defective ones, one folder per type of defect
ROOT/CATEGORY/ground_truth/DEFECT/*   their masks: NAME_mask.png (or NAME.png) for test/DEFECT/NAME.*
ROOT/CATEGORY/validation/good/*       good images to validate on, where they are set apart

P. Bergmann et al., "MVTec AD", CVPR 2019; S. Jezek et al., "Deep learning-based defect detection of metal parts",
ICUMT 2021 (MPDD, the same layout).

The others differ in this:

- MVTec AD 2 (L. Heckler-Kram et al., arXiv:2503.21622) has validation/good, and its public test set with masks in
  test_public/{good,bad,ground_truth/bad}; test_private and test_private_mixed have no labels and are not read.
- MVTec LOCO AD (P. Bergmann et al., IJCV 2022) has validation/good, the types logical_anomalies and
  structural_anomalies, and several masks per image: ground_truth/DEFECT/NAME/*.png, whose pixel values tell kinds of
  anomaly apart. Their union is the mask.
- BTAD (P. Mishra et al., "VT-ADL", ISIE 2021) says ok and ko; masks are named as their images, png or bmp.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from msad.data_io.files import images_below, list_folders, mask_files
from msad.data_io.layouts.base import Layout
from msad.data_io.layouts.faults import good_image_faults, loose_faults, nested_faults, orphan_faults, stranger_faults
from msad.data_io.layouts.known import FOLDER, Masks, orphaned_masks, typed_samples
from msad.data_io.layouts.sample import GOOD, Sample
from msad.data_io.report import Problem


class MvtecLike(Layout):
    """A folder per category, in it one per split, in that one per type of defect.

    Parameters
    ----------
    name, general, mask_threshold : see `Layout`.
    marks : paths one of which a folder must hold to be a category.
    good : what the folders of good images are called.
    test, truth : the folders of test images and of masks.
    mask_name : the mask's path below `truth`/DEFECT for messages, with {name} for the image's name without suffix.
    """

    def __init__(
        self,
        name: str,
        marks: tuple[str, ...],
        *,
        good: str = GOOD,
        test: str = "test",
        truth: str = "ground_truth",
        mask_name: str = "{name}_mask.png",
        mask_threshold: int = 0,
        general: bool = False,
    ) -> None:
        self.name, self.general, self.mask_threshold, self.good = name, general, mask_threshold, good
        self._marks = marks
        self._test, self._truth, self._mask_name = test, truth, mask_name
        self.signature = " or ".join(f"CATEGORY/{mark}" for mark in marks)
        self.expects_test = f"{test}/{good} and one folder per defect type"

    def categories(self, root: Path) -> list[str]:
        folders = [folder for folder in list_folders(root) if folder.name != FOLDER]  # which may hold ground_truth too
        return [folder.name for folder in folders if any((folder / mark).exists() for mark in self._marks)]

    def train(self, root: Path, category: str) -> list[Path]:
        return [*images_below(self.train_folder(root, category)), *self.validation(root, category)]

    def validation(self, root: Path, category: str) -> list[Path]:
        return images_below(self.validation_folder(root, category) / self.good)

    def test(self, root: Path, category: str) -> list[Sample]:
        folder = self.test_folder(root, category)
        samples = [Sample(path) for path in images_below(folder / self.good)]
        for defective in self._defect_folders(root, category):
            samples += typed_samples(defective, self.masks_in(root / category / self._truth / defective.name))
        return samples

    def train_folder(self, root: Path, category: str) -> Path:
        return root / category / "train" / self.good

    def test_folder(self, root: Path, category: str) -> Path:
        return root / category / self._test

    def expected_mask(self, sample: Sample) -> str:
        return f"{self._truth}/{sample.defect_type}/{self._mask_name.format(name=sample.path.stem)}"

    def strange_folders(self, root: Path) -> Iterator[Problem]:
        known = self.categories(root)
        for folder in list_folders(root):
            if folder.name not in known:
                yield Problem("warning", folder, f"is no category (no {self._marks[0]}/ in it) and is ignored")

    def faults(self, root: Path, category: str) -> Iterator[Problem]:
        good, test, truth = self.train_folder(root, category), self.test_folder(root, category), root / category
        truth /= self._truth
        yield from good_image_faults(good, len(images_below(good)))
        yield from loose_faults(root / category, str(good))
        yield from loose_faults(good.parent, str(good))
        for path in list_folders(good.parent):
            if path.name != self.good:
                yield Problem("warning", path, f"is ignored: only train/{self.good} is learned from")
        for path in list_folders(root / category):
            if path.name not in self._known_parts:
                yield Problem("warning", path, f"is ignored: there may be {', '.join(sorted(self._known_parts))}")
        if not test.is_dir():
            yield Problem("warning", test, "no such folder; a model can be searched but not be measured")
        else:
            yield from loose_faults(test, f"{test / self.good}, or a folder per type of defect beside it")
            if not (test / self.good).is_dir():
                yield Problem("warning", test / self.good, "no such folder; without good test images there is no AUROC")
        defective = self._defect_folders(root, category)
        tested = [path for path in (test / self.good, *defective) if path.is_dir()]
        for path in [*tested, *self._mask_folders(truth)]:
            if not images_below(path):
                yield Problem("error", path, "holds no images; fill or remove it")
        for path in [good, *tested]:
            yield from nested_faults(path, good=path.name == self.good)
        for path in self._mask_folders(truth):
            yield from stranger_faults(path, known=[below.name for below in list_folders(path)])
        yield from loose_faults(truth, f"{truth}/TYPE, a folder per type of defect")
        for path in list_folders(truth):
            if path.name not in [folder.name for folder in (test / self.good, *defective)]:
                yield Problem("error", path, f"masks without images: there is no {test / path.name}")
        for path in defective:
            orphans = orphaned_masks(path, self.masks_in(truth / path.name))
            yield from orphan_faults(truth / path.name, orphans, path, self._mask_name.format(name="NAME"))

    @property
    def _known_parts(self) -> set[str]:
        """What folders a category may hold."""
        marks = [*self._marks, self._truth, self._test, FOLDER, "train"]
        return {Path(mark).parts[0] for mark in marks if not Path(mark).suffix}

    def _defect_folders(self, root: Path, category: str) -> list[Path]:
        # MVTec AD 2 keeps its masks inside of the folder of test images.
        beside = {self.good, Path(self._truth).name}
        return [path for path in list_folders(self.test_folder(root, category)) if path.name not in beside]

    def _mask_folders(self, truth: Path) -> list[Path]:
        return list_folders(truth)


class MvtecLoco(MvtecLike):
    """A folder of masks per image instead of a file."""

    def _mask_folders(self, truth: Path) -> list[Path]:
        return [folder for defect_type in list_folders(truth) for folder in list_folders(defect_type)]

    def masks_in(self, folder: Path) -> Masks:
        return {part.name: part for part in list_folders(folder) if mask_files(part)}


MVTEC_AD = MvtecLike("mvtec_ad", ("train", "test", "ground_truth"), mask_threshold=127, general=True)
MVTEC_AD_2 = MvtecLike(
    "mvtec_ad_2",
    ("test_public", "test_private", "test_private_mixed"),
    test="test_public",
    truth="test_public/ground_truth",
)
MVTEC_LOCO = MvtecLoco(
    "mvtec_loco",
    ("test/logical_anomalies", "test/structural_anomalies", "defects_config.json"),
    mask_name="{name}/000.png",
)
BTAD = MvtecLike("btad", ("train/ok", "test/ok", "test/ko"), good="ok", mask_name="{name}.png")
