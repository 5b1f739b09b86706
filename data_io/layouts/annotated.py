"""Images that a list of annotations speaks of, wherever they lie: what `csv_list`, `coco` and `lookout` share.

A root is one product, called as its folder is, or holds a folder per product, each with its lists; only a csv may name
products itself. Good images of the split `train` are for training, those of `validation` for validation; all of `test`
is the test, and defective ones of the other two are known defects. Where no list tells splits apart, all defective
images are the test, and with them a fifth of the good ones by the hash of their names.

What a list does not say is asked for by the name of the setting that says it (`msad.data_io.layouts.settings`).
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from msad.data_io.errors import DataError
from msad.data_io.files import images_below, list_folders
from msad.data_io.layouts.base import Layout, hold_out
from msad.data_io.layouts.faults import FEWEST_GOOD_IMAGES, NAMES, ROI, good_image_faults, test_faults
from msad.data_io.layouts.sample import Sample
from msad.data_io.layouts.settings import refuse_unknown
from msad.data_io.report import Problem

TEST_SHARE = 0.2
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val"),
    "test": ("test", "testing"),
}
"""What lists, and files and folders of lists, call the splits, in any case; a setting of the same name adds to it."""


_PARTS = ("annotations", "labels", "manifest", "manifests")  # folders of lists


@dataclass(frozen=True)
class Row:
    """One image of a list: its product (None: that of the list), split (None: not told) and what `Sample` holds."""

    category: str | None
    split: str | None
    sample: Sample


class Annotated(Layout):
    """A layout that is never told by folders: it must be named.

    Attributes
    ----------
    settings_known : what may be said of it, by name.
    settings : what was said.
    patterns : of the files of lists, below a product's folder, where the setting `file` names none.
    """

    general = True
    expects_test = "images of the split test, or defective ones"
    settings_known: tuple[str, ...] = ("file", "good", *SPLIT_WORDS)
    patterns: tuple[str, ...]

    def __init__(self, settings: Mapping[str, Sequence[str]] | None = None) -> None:
        self.settings = {name: list(values) for name, values in (settings or {}).items()}
        refuse_unknown(self.name, self.settings, self.settings_known)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Annotated) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)

    def with_settings(self, text: str, settings: Mapping[str, Sequence[str]]) -> Layout:
        layout = type(self)(settings)
        layout.name = text
        return layout

    @abstractmethod
    def read(self, file: Path, product: Path) -> list[Row]:
        """The images of one list, below the product's folder.

        Raises
        ------
        DataError : the list cannot be read, or something that it must say is not said.
        """

    def said(self, name: str) -> str | None:
        """A setting that is said at most once.

        Raises
        ------
        DataError : it is said several times.
        """
        values = self.settings.get(name, [])
        if len(values) > 1:
            raise DataError(f"layout {self.name}: {name} is set {len(values)} times: say it once")
        return values[0] if values else None

    def categories(self, root: Path) -> list[str]:
        if self._lists_of_root(root):
            named = {row.category for row in self._rows(root)}
            return sorted(name or root.resolve().name or "images" for name in named)
        return [folder.name for folder in list_folders(root) if self._lists(folder)]

    def train(self, root: Path, category: str) -> list[Path]:
        return sorted(sample.path for sample in self._of(root, category, "train", "validation") if not sample.label)

    def validation(self, root: Path, category: str) -> list[Path]:
        return sorted(sample.path for sample in self._of(root, category, "validation") if not sample.label)

    def test(self, root: Path, category: str) -> list[Sample]:
        samples = self._of(root, category, "test")
        return sorted(samples, key=lambda sample: (sample.label, sample.defect_type, sample.path))

    def known_defects(self, root: Path, category: str) -> list[Sample]:
        samples = [sample for sample in self._of(root, category, "train", "validation") if sample.label]
        return sorted(samples, key=lambda sample: (sample.defect_type, sample.path))

    def known_faults(self, root: Path, category: str) -> Iterator[Problem]:
        return iter(())

    def train_folder(self, root: Path, category: str) -> Path:
        return self._product(root, category)

    test_folder = validation_folder = train_folder

    def roi(self, root: Path, category: str) -> Path:
        return self._product(root, category) / ROI

    def strange_folders(self, root: Path) -> Iterator[Problem]:
        if not self._lists_of_root(root):
            yield from super().strange_folders(root)

    def faults(self, root: Path, category: str) -> Iterator[Problem]:
        product = self._product(root, category)
        yield from good_image_faults(product, len(self.train(root, category)))
        yield from test_faults(product, self.test(root, category))
        rows = self._rows(product)
        listed = {path for row in rows for path in (row.sample.path, row.sample.mask_path)}
        if extra := [path for path in images_below(product) if path not in listed and path.name != ROI]:
            names = " and ".join(file.name for file in self._lists(product)[:3])
            what = f"{len(extra)} images are not in {names} and are ignored, {extra[0].relative_to(product)} the first"
            yield Problem("warning", product, what)

    def good_labels(self, labels: Collection[str]) -> set[str]:
        """Those of a list's labels that mean good, by the setting `good` or by what good is called mostly."""
        known = {word.strip().lower() for word in self.settings.get("good", NAMES["good"])}
        return {label for label in labels if label.strip().lower() in known}

    def split_of(self, word: str | None, file: Path, product: Path) -> str | None:
        """The split that a list says of an image, or that the list's own name and folders say of all; None for none.

        Raises
        ------
        DataError : the list says a word that is none of a split's.
        """
        words = {
            name: {*usual, *(one.lower() for one in self.settings.get(name, ()))} for name, usual in SPLIT_WORDS.items()
        }
        if word is not None:
            if found := next((name for name, known in words.items() if word.strip().lower() in known), None):
                return found
            raise DataError(
                f"{file}: the split '{word}' is neither train, validation nor test; say which it is with --layout "
                f"{self.more(f'train={word}')} (or validation=, test=)"
            )
        own = {*_words(file.relative_to(product).with_suffix(""))}
        return next((name for name, known in words.items() if known & own), None)

    def inside(self, path: Path, file: Path, root: Path) -> Path:
        """A path that a list names, which must not lead out of the dataset: the list is untrusted input.

        Raises
        ------
        DataError : it does.
        """
        if ".." in path.parts or not path.is_relative_to(root):
            raise DataError(f"{file}: {path} leads out of {root}; give the folder that holds all images as the root")
        return path

    def more(self, setting: str) -> str:
        """What `--layout` would be with one more setting."""
        return f"'{self.name}{',' if ':' in self.name else ':'}{setting}'"

    def _product(self, root: Path, category: str) -> Path:
        return root if self._lists_of_root(root) else root / category

    def _lists_of_root(self, root: Path) -> list[Path]:
        """The lists of a root that is one product: those in it, or in folders that are called as a part of it is."""
        parts = {*_PARTS, *(word for words in SPLIT_WORDS.values() for word in words)}
        found = self._lists(root)
        return [file for file in found if {*_words(file.relative_to(root).parent)} & parts or file.parent == root]

    def _lists(self, product: Path) -> list[Path]:
        """The files of lists of a product."""
        if named := self.settings.get("file"):
            return [product / name for name in named if (product / name).is_file()]
        found = (path for pattern in self.patterns for path in product.glob(pattern))
        return sorted({path for path in found if path.is_file() and not path.name.startswith(".")})

    def _rows(self, product: Path) -> list[Row]:
        lists = self._lists_of_root(product) or self._lists(product)
        states = tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in lists)
        return _read_all(self, states, product)

    def _of(self, root: Path, category: str, *splits: str) -> list[Sample]:
        """The images of a product in some splits."""
        product = self._product(root, category)
        own = product.resolve().name or "images"
        rows = [row for row in self._rows(product) if (row.category or own) == category]
        untold = [row for row in rows if row.split is None]
        if untold and len(untold) < len(rows):
            raise DataError(
                f"{product}: the lists say no split of {len(untold)} of {len(rows)} images, "
                f"{untold[0].sample.path.name} the first; say it of all of them or of none"
            )
        if not untold:
            return [row.sample for row in rows if row.split in splits]
        good = [row.sample for row in rows if not row.sample.label]
        bad = [row.sample for row in rows if row.sample.label]
        held_out = set(hold_out([one.path for one in good], TEST_SHARE, FEWEST_GOOD_IMAGES)[1] if bad else ())
        of_split = {"test": [*(one for one in good if one.path in held_out), *bad]}
        of_split["train"] = [one for one in good if one.path not in held_out]
        return [sample for split in splits for sample in of_split.get(split, ())]


def _words(path: Path) -> list[str]:
    """The words of a path's names, in small letters."""
    return "".join(letter if letter.isalnum() else " " for letter in path.as_posix().lower()).split()


@functools.lru_cache(maxsize=64)
def _read_all(layout: Annotated, states: tuple[tuple[Path, int, int], ...], product: Path) -> list[Row]:
    """Read the lists of a product; again only where a file has changed."""
    seen: dict[tuple[str | None, Path], Row] = {}
    for file, _, _ in states:
        for row in layout.read(file, product):
            if (other := seen.setdefault((row.category, row.sample.path), row)) != row:
                types = f"{other.sample.defect_type} and as {row.sample.defect_type}"
                raise DataError(f"{row.sample.path}: is listed as {types}, or in two splits; mend the lists")
    rows = list(seen.values())
    if rows and all(row.sample.label for row in rows):
        listed = ", ".join(sorted({row.sample.defect_type for row in rows})[:8])
        words = layout.settings.get("good")
        said = f"none is called {' or '.join(words)}" if words else "none of them says good"
        raise DataError(
            f"{states[0][0]}: the labels are {listed}, and {said}; say which one means good with --layout "
            f"{layout.more('good=LABEL')}"
        )
    return rows
