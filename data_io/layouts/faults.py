"""What can be wrong in folders of images by names alone, in whichever layout; and what its folders may be called."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from msad.data_io.files import SUFFIXES_TEXT, folders_below, list_folders, list_images, list_strangers
from msad.data_io.layouts.sample import Sample
from msad.data_io.report import Problem

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
