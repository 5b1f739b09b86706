"""Which layout a dataset root is in, and its categories. Lists folders; opens no file."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path

from msad.data_io.errors import DataError
from msad.data_io.files import IMAGE_SUFFIXES, list_images
from msad.data_io.layouts.base import Layout
from msad.data_io.layouts.coco import Coco
from msad.data_io.layouts.csv_list import CsvList
from msad.data_io.layouts.dagm import Dagm
from msad.data_io.layouts.folder import Folder
from msad.data_io.layouts.kolektor import KolektorSdd, KolektorSdd2
from msad.data_io.layouts.lookout import Lookout
from msad.data_io.layouts.magnetic_tile import MagneticTile
from msad.data_io.layouts.mvtec import BTAD, MVTEC_AD, MVTEC_AD_2, MVTEC_LOCO
from msad.data_io.layouts.sample import GOOD
from msad.data_io.layouts.settings import near, parted
from msad.data_io.layouts.visa import Visa

__all__ = ["AUTO", "GOOD", "IMAGE_SUFFIXES", "LAYOUTS", "SPLITS", "choose_categories", "find_layout", "known_layout"]

SPLITS = ("train", "test")
AUTO = "auto"
_ALL = (
    MVTEC_AD, MVTEC_AD_2, MVTEC_LOCO, Visa(), BTAD, KolektorSdd(), KolektorSdd2(), Dagm(), MagneticTile(), Folder()
)  # fmt: skip
# Told by nobody but the user: a csv or a json in a root may be anything.
_NAMED = (Lookout(), Coco(), CsvList())
# MPDD is in the layout of MVTec AD to the letter; its name is understood all the same.
LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (*_ALL, *_NAMED)} | {"mpdd": MVTEC_AD}


def known_layout(text: str) -> str:
    """The name of a layout, perhaps with settings behind it, if there is such a layout; or "auto".

    Raises
    ------
    DataError : there is none, with the nearest and all in its text; or it has no such setting.
    """
    if text != AUTO:
        _layout_of(text)
    return text


def _layout_of(text: str) -> Layout:
    name, settings = parted(text)
    if name not in LAYOUTS:
        raise DataError(f"no layout '{name}'.{near(name, LAYOUTS)} There are: auto, {', '.join(sorted(LAYOUTS))}")
    return LAYOUTS[name].with_settings(text, settings) if settings else LAYOUTS[name]


def find_layout(root: Path | str, layout: str = AUTO) -> Layout:
    """The layout of that name, which may have settings (`msad.data_io.layouts.settings`); or the one the root is in.

    A layout of one certain dataset goes before the general ones (mvtec_ad, folder); the same root gives the same answer
    on every machine.

    Raises
    ------
    DataError : the root does not exist or is no folder; no such layout; the root is in none of them, or in two.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: {'is no folder' if root.exists() else 'no such folder'}; give the dataset's root")
    if known_layout(layout) != AUTO:
        return _layout_of(layout)
    for general in (False, True):
        fits = [one for one in _ALL if one.general == general and one.categories(root)]
        if len(fits) > 1:
            listed = " and ".join(f"{one.name} ({one.signature})" for one in fits)
            raise DataError(f"{root}: looks like {listed}; say which with --layout NAME, or keep them in two folders")
        if fits:
            return fits[0]
    parent = root.resolve().parent
    if any(root.resolve().name in one.categories(parent) for one in _ALL):
        raise DataError(f"{root}: is itself a category; give its parent folder {parent} as the root")
    if list_images(root):
        raise DataError(
            f"{root}: holds images and no category; put those of good parts into {root / 'good'}, and defective ones, "
            f"if there are any, into {root / 'bad'}"
        )
    known = "\n".join(f"  {one.name}: {one.signature}" for one in _ALL if one is not MVTEC_AD)
    raise DataError(
        f"{root}: no category in it; expected {root}/CATEGORY/train/good with images of good parts, or what tells one "
        f"of the other layouts:\n{known}\nWhere a list says which images are good: --layout csv, coco or lookout"
    )


def list_categories(root: Path | str, layout: str = AUTO) -> list[str]:
    """Names of the categories of a dataset root, sorted.

    Raises
    ------
    DataError : as `find_layout`, or the root holds no category of the layout that was named.
    """
    found = find_layout(root, layout)
    if names := found.categories(Path(root)):
        return names
    raise DataError(f"{root}: no category in it that is laid out as {found.name}; looked for {found.signature}")


def choose_categories(root: Path | str, categories: Iterable[str] | None = None, layout: str = AUTO) -> list[str]:
    """The asked categories in the asked order without repetition, or all of the root.

    Raises
    ------
    DataError : one is not there (the text names the nearest and lists all), or `list_categories` raises.
    """
    known = list_categories(root, layout)
    if categories is None:
        return known
    # One letter with an accent has two spellings in Unicode that look alike: a keyboard's and, on macOS, a folder's.
    spelt = {unicodedata.normalize("NFC", name): name for name in reversed(known)}
    asked = [categories] if isinstance(categories, str) else categories
    asked = [name if name in known else spelt.get(unicodedata.normalize("NFC", name), name) for name in asked]
    unknown = [name for name in dict.fromkeys(asked) if name not in known]
    if unknown:
        listed = ", ".join(known)
        raise DataError(
            "\n".join(
                f"{root}: no category '{name}'.{_nearest(Path(root), name, known)} There are: {listed}"
                for name in unknown
            )
        )
    return list(dict.fromkeys(asked))


def _nearest(root: Path, name: str, known: Iterable[str]) -> str:
    if name.startswith(".") and "/" not in name and (root / name).is_dir():
        return " That folder is hidden, because its name begins with a dot, and hidden ones are left out: rename it."
    if with_comma := next((one for one in known if "," in one and name in map(str.strip, one.split(","))), None):
        return f" Did you mean '{with_comma}'? It needs double quotes, for its comma: --categories '\"{with_comma}\"'."
    return near(name, known)
