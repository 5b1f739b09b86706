"""Names on disk: where the MVTec AD layout keeps what. Lists folders; opens no file.

ROOT/CATEGORY/train/good/*            good images to learn from
ROOT/CATEGORY/test/good/*             good images to be measured on
ROOT/CATEGORY/test/DEFECT/*           defective ones, one folder per type of defect
ROOT/CATEGORY/ground_truth/DEFECT/*   their masks: NAME_mask.png (or NAME.png) for test/DEFECT/NAME.*
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

from data_io.errors import DataError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
GOOD = "good"
SPLITS = ("train", "test")
_PARTS = ("train", "test", "ground_truth")


def list_categories(root: Path | str) -> list[str]:
    """Names of the categories of a dataset root: its folders that hold train/, test/ or ground_truth/, sorted.

    Raises
    ------
    DataError : the root does not exist, is no folder, or holds no category.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: {'is no folder' if root.exists() else 'no such folder'}; give the dataset's root")
    names = [folder.name for folder in list_folders(root) if any((folder / part).is_dir() for part in _PARTS)]
    if names:
        return names
    if any((root / part).is_dir() for part in _PARTS):
        raise DataError(f"{root}: is itself a category; give its parent folder {root.resolve().parent} as the root")
    raise DataError(f"{root}: no category in it; expected {root}/CATEGORY/train/good with images of good parts")


def choose_categories(root: Path | str, categories: Iterable[str] | None = None) -> list[str]:
    """The asked categories in the asked order without repetition, or all of the root.

    Raises
    ------
    DataError : one is not there (the text names the nearest and lists all), or `list_categories` raises.
    """
    known = list_categories(root)
    if categories is None:
        return known
    asked = list(dict.fromkeys([categories] if isinstance(categories, str) else categories))
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise DataError("\n".join(_unknown_category(Path(root), name, known) for name in unknown))
    return asked


def list_folders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted; hidden ones left out; none if there is no such folder."""
    return [path for path in _entries(folder) if path.is_dir()]


def list_images(folder: Path) -> list[Path]:
    """The files in a folder whose name ends as an image's does, sorted; none if there is no such folder."""
    return [path for path in _entries(folder) if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()]


def list_strangers(folder: Path) -> list[Path]:
    """Whatever lies in an image folder and is neither an image file nor hidden, sorted."""
    return [path for path in _entries(folder) if path.suffix.lower() not in IMAGE_SUFFIXES or path.is_dir()]


def pair_masks(category_folder: Path, defect_type: str) -> tuple[dict[Path, Path | None], list[Path]]:
    """Each image of test/DEFECT with its mask, by name.

    Returns
    -------
    pairs : image path to mask path, None where there is no mask; sorted by image.
    orphans : masks without an image, sorted.
    """
    masks = {path.stem: path for path in list_images(category_folder / "ground_truth" / defect_type)}
    pairs = {
        path: masks.get(f"{path.stem}_mask") or masks.get(path.stem)
        for path in list_images(category_folder / "test" / defect_type)
    }
    used = set(pairs.values())
    return pairs, [path for path in masks.values() if path not in used]


def _entries(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _unknown_category(root: Path, name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"{root}: no category '{name}'.{hint} There are: {', '.join(known)}"
