"""What lies in a folder, by name; hidden entries are left out. Opens no file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp")
SUFFIXES_TEXT = "png, jpg, bmp, tif, webp"


def list_folders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted; none if there is no such folder."""
    return [path for path in _entries(folder) if path.is_dir()]


def list_images(folder: Path) -> list[Path]:
    """The files in a folder whose name ends as an image's does, sorted; none if there is no such folder."""
    return [path for path in _entries(folder) if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()]


def list_strangers(folder: Path) -> list[Path]:
    """Whatever lies in an image folder and is neither an image file nor hidden, sorted."""
    return [path for path in _entries(folder) if path.suffix.lower() not in IMAGE_SUFFIXES or path.is_dir()]


def folders_below(folder: Path) -> list[Path]:
    """A folder and all folders below it, sorted; linked ones are followed, and each is named once, however reached."""
    return sorted(_below(folder, set()))


def images_below(folder: Path) -> list[Path]:
    """The image files in a folder and in all folders below it, sorted: `list_images` of `folders_below`."""
    return sorted(path for part in folders_below(folder) for path in list_images(part))


def mask_files(mask_path: Path) -> list[Path]:
    """The files of one ground truth: the file itself, or those in the folder whose union it is."""
    return list_images(mask_path) if mask_path.is_dir() else [mask_path]


def _below(folder: Path, seen: set[Path]) -> Iterator[Path]:
    if not folder.is_dir() or (real := folder.resolve()) in seen:
        return
    seen.add(real)
    yield folder
    # Linked folders last: where one leads to a folder beside it, that one keeps its own name.
    for part in sorted(list_folders(folder), key=lambda path: (path.is_symlink(), path)):
        yield from _below(part, seen)


def _entries(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
