"""Known defects: a few defective images that help to choose, in every layout in the same place.

CATEGORY/validation/DEFECT/*                defective images, one folder per type of defect
CATEGORY/validation/ground_truth/DEFECT/*   their masks, where there are any: NAME_mask.png (or NAME.png)

They choose trials, scoring and threshold beside the synthetic ones. They are neither learned from nor measured on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from msad.data_io.files import images_below, list_folders
from msad.data_io.layouts.faults import loose_faults, nested_faults, orphan_faults, stranger_faults
from msad.data_io.layouts.sample import GOOD, Sample
from msad.data_io.report import Problem

FOLDER, TRUTH = "validation", "ground_truth"
Masks = Mapping[str, Path]
"""Masks by the name of their image, or that with `_mask`, without suffix."""


def masks_in(folder: Path) -> Masks:
    """The masks of one type of defect."""
    return {name_below(path, folder): path for path in images_below(folder)}


def typed_samples(folder: Path, masks: Masks) -> list[Sample]:
    """The defective images in the folder of one type of defect, with their masks."""
    named = [(path, name_below(path, folder)) for path in images_below(folder)]
    return [Sample(path, folder.name, masks.get(f"{name}_mask") or masks.get(name)) for path, name in named]


def name_below(path: Path, folder: Path) -> str:
    """A file's place below a folder, without suffix."""
    return path.relative_to(folder).with_suffix("").as_posix()


def type_folders(folder: Path, good: str = GOOD) -> list[Path]:
    """The folders of defective images in a folder of validation images; `good` is what that of good ones is called."""
    return [part for part in list_folders(folder) if part.name not in (good, TRUTH)]


def orphaned_masks(folder: Path, masks: Masks) -> list[Path]:
    """Of the masks of one type those that belong to no image in its folder."""
    names = {name_below(path, folder) for path in images_below(folder)}
    return [mask for name, mask in masks.items() if not {name, name.removesuffix("_mask")} & names]


def known_faults(
    folder: Path, good: str, find_masks: Callable[[Path], Masks], mask_name: str = "NAME_mask.png"
) -> Iterator[Problem]:
    """What is wrong by names alone with a folder of validation images, whose good ones are the layout's affair.

    `find_masks` gives the masks in a folder of one type, `mask_name` says how one is called.
    """
    yield from loose_faults(folder, f"{folder}/DEFECT, a folder per type of defect")
    types, truth = type_folders(folder, good), folder / TRUTH
    for part in types:
        if not images_below(part):
            yield Problem("error", part, "holds no images; fill or remove it")
        yield from nested_faults(part)
        yield from orphan_faults(
            truth / part.name, orphaned_masks(part, find_masks(truth / part.name)), part, mask_name
        )
    for part in list_folders(truth):
        if part.name not in [one.name for one in types]:
            yield Problem("error", part, f"masks without images: there is no {folder / part.name}")
        yield from stranger_faults(part, known=[below.name for below in list_folders(part)])
