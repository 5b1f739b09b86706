"""What a layout says about a dataset root, whichever dataset it is."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from msad.data_io.files import SUFFIXES_TEXT, folders_below, list_folders, list_images, list_strangers
from msad.data_io.report import Problem

GOOD = "good"
ROI = "roi.png"
"""What the mask of a category's region of interest is called."""

# Two to learn from and two to judge on is the least with which both halves of a split still have a spread.
FEWEST_GOOD_IMAGES = 4
# What each folder of one's own images may be called, in any case; the first is what messages say.
NAMES = {
    "good": ("good", "ok", "normal"),
    "bad": (
        "bad",
        "defective",
        "defect",
        "defects",
        "anomaly",
        "anomalies",
        "abnormal",
        "anomalous",
        "ng",
        "nok",
        "ko",
    ),
    "masks": ("masks", "mask", "ground_truth"),
    "good_test": ("good_test", "test_good"),
}
NOT_GOOD = {*NAMES["bad"], *NAMES["masks"]}


@dataclass(frozen=True)
class Sample:
    """One test image: its type of defect ("good" for none) and its ground truth.

    `mask_path` is a file, a folder of files whose union is the mask, or None: good, or no mask there.
    """

    path: Path
    defect_type: str = GOOD
    mask_path: Path | None = None

    @property
    def label(self) -> int:
        """0 good, 1 defective."""
        return int(self.defect_type != GOOD)


class Layout(ABC):
    """How one dataset is distributed. Answers by names on disk and by the dataset's own lists; decodes no image.

    Attributes
    ----------
    name : what `--layout` and the configuration call it.
    signature : what a root must hold to be recognised, for messages.
    general : whether it is only thought of where no layout of one certain dataset fits.
    mask_threshold : pixels of a mask above it are defective; 0 where a dataset numbers its defects from 1.
    test_needs_opening : whether a file of the test split must be opened to tell its good images from the defective.
    expects_test : what test images would look like, for messages.
    """

    name: str
    signature: str
    general = False
    mask_threshold = 0
    test_needs_opening = False
    expects_test = "good and defective ones"

    @abstractmethod
    def categories(self, root: Path) -> list[str]:
        """Names of the categories, sorted; empty where the root is not in this layout."""

    @abstractmethod
    def train(self, root: Path, category: str) -> list[Path]:
        """All good images that may be learned from, sorted; those of `validation` are among them."""

    @abstractmethod
    def test(self, root: Path, category: str) -> list[Sample]:
        """The test images, good ones first, then by type of defect and name."""

    @abstractmethod
    def train_folder(self, root: Path, category: str) -> Path:
        """Where the good training images belong, for messages."""

    @abstractmethod
    def test_folder(self, root: Path, category: str) -> Path:
        """Where the test images belong, for messages."""

    @abstractmethod
    def expected_mask(self, sample: Sample) -> str:
        """What the mask of a defective test image should be called, for messages."""

    def roi(self, root: Path, category: str) -> Path:
        """Where the mask of a category's region of interest may lie; most datasets have none."""
        return root / category / ROI

    def validation(self, root: Path, category: str) -> list[Path]:
        """Good images that the dataset sets apart for validation; empty where it has no such split."""
        return []

    def faults(self, root: Path, category: str) -> Iterator[Problem]:
        """What is wrong by names alone; whatever opening images shows is `msad.data_io.check`'s part."""
        folder = self.train_folder(root, category)
        yield from good_image_faults(folder, len(self.train(root, category)))
        if not self.test_needs_opening:
            yield from test_faults(self.test_folder(root, category), self.test(root, category))

    def strange_folders(self, root: Path) -> Iterator[Problem]:
        """Folders beside the categories that the layout does not know."""
        known = {*self.categories(root), *self.folders_beside_categories}
        for folder in list_folders(root):
            if folder.name not in known:
                yield Problem("warning", folder, f"is no category ({self.signature}) and is ignored")

    folders_beside_categories: tuple[str, ...] = ()


def good_image_faults(folder: Path, count: int) -> Iterator[Problem]:
    """Too few good images to learn from."""
    if not folder.is_dir():
        yield Problem("error", folder, "no such folder; put the images of good parts there")
    elif count == 0:
        yield Problem("error", folder, "holds no images; put the images of good parts there")
    elif count < FEWEST_GOOD_IMAGES:
        yield Problem("error", folder, f"holds {count} images; at least {FEWEST_GOOD_IMAGES} are needed")


def test_faults(folder: Path, samples: Sequence[Sample]) -> Iterator[Problem]:
    """Test images without which there is no measurement."""
    labels = {sample.label for sample in samples}
    if not labels:
        yield Problem("warning", folder, "no test images there; a model can be searched but not be measured")
    elif labels == {1}:
        yield Problem("warning", folder, "no good images there; without good test images there is no AUROC")
    elif labels == {0}:
        yield Problem("warning", folder, "no defective images there; without any there is no AUROC")


def stranger_faults(folder: Path, known: Sequence[str] = ()) -> Iterator[Problem]:
    """Entries of an image folder that are no image and not known by name."""
    for stranger in list_strangers(folder):
        if stranger.name not in known:
            yield Problem("warning", stranger, f"is no image file ({SUFFIXES_TEXT}) and is ignored")


def nested_faults(folder: Path, *, good: bool = False) -> Iterator[Problem]:
    """Strangers in an image folder and in those below it, whose images belong to it; and that there are such folders.

    `good`: the folder is one of good images, below which a folder of defective ones or of masks has no place.
    """
    counts: dict[str, int] = {}
    for part in folders_below(folder):
        name = part.relative_to(folder)
        if good and any(word.lower() in NOT_GOOD for word in name.parts):
            yield Problem("error", part, f"by its name holds no good images; move it out of {folder.name}")
            continue
        yield from stranger_faults(part, known=[below.name for below in list_folders(part)])
        if part != folder and (count := len(list_images(part))):
            counts[name.as_posix()] = count
    if counts:
        listed = ", ".join([*counts][:3]) + (", ..." if len(counts) > 3 else "")
        yield Problem("warning", folder, f"{sum(counts.values())} of its images lie in folders below it ({listed})")


def loose_faults(folder: Path, belong: str) -> Iterator[Problem]:
    """Images beside the folders that they belong into."""
    if loose := [path for path in list_images(folder) if path.name != ROI]:
        what = (
            f"{len(loose)} image(s) beside the folders are ignored, {loose[0].name} the first; put them into {belong}"
        )
        yield Problem("warning", folder, what)


def orphan_faults(folder: Path, orphans: Sequence[Path], images: Path, names: str) -> Iterator[Problem]:
    """Files in a folder of masks that belong to no image; `names` says how a mask is called."""
    if orphans:
        first = orphans[0].relative_to(folder)
        what = (
            f"{len(orphans)} file(s) match no image of {images} and are ignored, {first} the first; a mask is called "
        )
        yield Problem("warning", folder, what + names)


def hold_out(paths: Sequence[Path], share: float, leave: int = 0) -> tuple[list[Path], list[Path]]:
    """Cut images in two by the hash of their names: the same on every machine, whatever order they are listed in.

    Parameters
    ----------
    paths : the images.
    share : of them held out, in (0, 1); at least one.
    leave : images that must remain; where fewer than that and one are there, none is held out.

    Returns
    -------
    kept, held_out : both in the order of `paths`.
    """
    count = max(0, min(max(1, round(share * len(paths))), len(paths) - leave))
    ranked = sorted(paths, key=lambda path: hashlib.sha256(path.name.encode()).digest())
    held_out = set(ranked[:count])
    return [path for path in paths if path not in held_out], [path for path in paths if path in held_out]
