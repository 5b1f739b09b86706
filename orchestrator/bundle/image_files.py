"""Which image files `msad predict` scores: every file found is scored, skipped with a reason, or named as no image.

Folders are searched to any depth, linked ones too. What is hidden is left out, and the masks of a dataset
(`msad.data_io.ground_truth`), and the results of an earlier run, unless they are named themselves.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from msad.data_io.files import SUFFIXES_TEXT
from msad.data_io.ground_truth import mask_files, mask_folders
from msad.data_io.layout import IMAGE_SUFFIXES
from msad.errors import ConfigError

NO_IMAGES = (
    *(".csv", ".db", ".doc", ".docx", ".gz", ".htm", ".html", ".ini", ".ipynb", ".json", ".log", ".md", ".npy", ".npz"),
    *(".pdf", ".py", ".rst", ".sh", ".tar", ".toml", ".txt", ".xls", ".xlsx", ".xml", ".yaml", ".yml", ".zip"),
)
"""What a file's name ends in that is plainly none: notes and tables beside images."""


@dataclass(frozen=True)
class ImageFile:
    """An image file: its path as given, and its place below the folder that all have in common."""

    path: str
    place: Path

    @property
    def file(self) -> str:
        """What tells it from all others: its absolute path. Links stay: a link's own name counts."""
        return os.path.abspath(self.path)  # noqa: PTH100 - a Path for each of a million files is slow


@dataclass
class Found:
    """What there is in files and folders, each file once.

    `images` are to be scored; `skipped` says by path why a file or folder that was meant is not; `masks` were left out
    as ground truth; `others` are plainly no images.
    """

    images: list[ImageFile] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    masks: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def find_images(paths: Sequence[Path], results: Path) -> Found:
    """List the files, folder by folder; a folder's links to folders come after its own, and no folder comes twice.

    Parameters
    ----------
    paths
        Files and folders.
    results
        Folder of an earlier run's results, which are no input.

    Raises
    ------
    ConfigError
        No such file or folder, or no image in any.
    """
    refuse_missing(paths)
    # A link's own name counts, not that of the file it leads to.
    roots = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100
    common = os.path.commonpath([root if root.is_dir() else root.parent for root in roots])
    found, walk = Found(), _Walk(results.resolve())
    for path, root in zip(paths, roots, strict=True):
        place = root.relative_to(common)
        if path.is_dir():
            walk.folder(path, place, found)
        else:
            found.images.append(ImageFile(str(path), place))
    first: dict[str, ImageFile] = {}
    for image in found.images:
        first.setdefault(image.file, image)
    found.images = [*first.values()]
    if found.images:
        return found
    if found.masks:
        raise ConfigError(f"nothing but ground truth, {found.masks[0]} the first; to score it all the same, name it")
    given = ", ".join(map(str, paths))
    if found.skipped:
        listed = "\n".join(f"  {path}: {reason}" for path, reason in [*found.skipped.items()][:10])
        raise ConfigError(
            f"no image ({', '.join(IMAGE_SUFFIXES)}) in {given}, but {len(found.skipped)} that:\n{listed}"
        )
    raise ConfigError(f"no image ({', '.join(IMAGE_SUFFIXES)}) in {given}")


class _Walk:
    """Goes through folders; `results` is not entered, and none is twice, whatever links lead to it."""

    def __init__(self, results: Path) -> None:
        self._entered = {results}

    def folder(self, folder: Path, place: Path, found: Found) -> None:
        """Add to what was found all that lies in and below a folder, whose place is given."""
        waiting = [(folder, place)]
        while waiting:
            top, its_place = waiting.pop(0)
            links = self._below(top, its_place, found)
            waiting = links + waiting

    def _below(self, top: Path, place: Path, found: Found) -> list[tuple[Path, Path]]:
        """Go through a folder and return the links to folders in it."""
        links: list[tuple[Path, Path]] = []

        def unreadable(error: OSError) -> None:
            found.skipped[str(error.filename)] = f"the folder cannot be opened: {error.strerror}"

        for name, folders, files in os.walk(top, onerror=unreadable):
            parent = Path(name)
            real = parent.resolve()
            if real in self._entered:
                folders.clear()
                continue
            self._entered.add(real)
            below = place / parent.relative_to(top)
            no_images = mask_folders(folders) | mask_files(files, parent.name)
            shown = [sorted(name for name in names if not name.startswith(".")) for names in (folders, files)]
            found.masks += [str(parent / name) for name in shown[0] if name in no_images]
            inner = [name for name in shown[0] if name not in no_images]
            links += [(parent / name, below / name) for name in inner if (parent / name).is_symlink()]
            folders[:] = [name for name in inner if not (parent / name).is_symlink()]
            for file in shown[1]:
                _sort(parent / file, below / file, file in no_images, found)
        return links


def _sort(path: Path, place: Path, is_mask: bool, found: Found) -> None:
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES and is_mask:
        found.masks.append(str(path))
    elif suffix in IMAGE_SUFFIXES:
        found.images.append(ImageFile(str(path), place))
    elif path.name == "Thumbs.db" or suffix in NO_IMAGES:
        found.others.append(str(path))
    elif path.is_symlink() and not path.exists():
        found.skipped[str(path)] = "a link that leads nowhere; mend or remove it"
    else:
        found.skipped[str(path)] = f"not an image file by its name ({SUFFIXES_TEXT}); save it as one of these"


def refuse_missing(paths: Iterable[Path]) -> None:
    """Raise a ConfigError that names all paths at which there is nothing."""
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise ConfigError(f"no such file or folder: {', '.join(missing)}")
