"""What lies in a folder, by name; hidden entries are left out. Opens no file."""

from __future__ import annotations

from pathlib import Path

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def list_folders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted; none if there is no such folder."""
    return [path for path in _entries(folder) if path.is_dir()]


def list_images(folder: Path) -> list[Path]:
    """The files in a folder whose name ends as an image's does, sorted; none if there is no such folder."""
    return [path for path in _entries(folder) if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()]


def list_strangers(folder: Path) -> list[Path]:
    """Whatever lies in an image folder and is neither an image file nor hidden, sorted."""
    return [path for path in _entries(folder) if path.suffix.lower() not in IMAGE_SUFFIXES or path.is_dir()]


def mask_files(mask_path: Path) -> list[Path]:
    """The files of one ground truth: the file itself, or those in the folder whose union it is."""
    return list_images(mask_path) if mask_path.is_dir() else [mask_path]


def _entries(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
