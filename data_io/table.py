"""A dataset root as a table: one row per image."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

import pandas as pd

from data_io.decode import Header, read_header
from data_io.errors import DataError
from data_io.layout import GOOD, SPLITS, choose_categories, list_categories, list_folders, list_images, pair_masks
from data_io.parallel import map_in_threads

__all__ = ["COLUMNS", "list_categories", "read_table"]

COLUMNS = ("path", "category", "split", "label", "defect_type", "mask_path", "width", "height")
Row = tuple[Path, str, str, int, str, Path | None]


def read_table(
    root: Path | str, categories: Iterable[str] | None = None, splits: Collection[str] = SPLITS
) -> pd.DataFrame:
    """List the images of a dataset root in the MVTec AD layout.

    Only headers are read, and only of the asked splits: with `splits=("train",)` no file outside train/ is opened.

    Parameters
    ----------
    root : folder of the categories.
    categories : names to keep; None for all.
    splits : "train", "test" or both.

    Returns
    -------
    One row per image, sorted by category, split (train first), defect type (good first) and file name: `path` (Path),
    `category`, `split`, `label` (0 good, 1 defective), `defect_type` ("good" or the folder's name), `mask_path` (Path,
    or None: good, or no mask there), `width` and `height` in pixels as looked at, EXIF orientation applied.

    Raises
    ------
    DataError : no such root, category (with the nearest name) or split; a category without train/good images or
        without a test folder, where asked for; files that are no images (all of them in one error).
    """
    splits = [splits] if isinstance(splits, str) else splits
    unknown = sorted(set(splits) - set(SPLITS))
    if unknown:
        raise DataError(f"no split {', '.join(map(repr, unknown))}; there are 'train' and 'test'")
    rows: list[Row] = []
    for category in choose_categories(root, categories):
        folder = Path(root) / category
        rows += [row for split in SPLITS if split in splits for row in _rows(folder, split)]

    headers: list[Header] = []
    problems: list[str] = []
    for header in map_in_threads(_header_or_problem, [row[0] for row in rows]):
        (headers if isinstance(header, Header) else problems).append(header)
    if problems:
        raise DataError("\n".join(problems))
    table = pd.DataFrame(
        [(*row, header.width, header.height) for row, header in zip(rows, headers, strict=True)], columns=list(COLUMNS)
    )
    # Without a type of its own a column of paths and None turns None into NaN.
    table["mask_path"] = pd.Series([row[5] for row in rows], dtype=object)
    return table


def _rows(folder: Path, split: str) -> list[Row]:
    if split == "train":
        images = list_images(folder / "train" / GOOD)
        if not images:
            raise DataError(f"{folder / 'train' / GOOD}: no images of good parts there; put them there")
        return [(path, folder.name, split, 0, GOOD, None) for path in images]
    defect_types = [path.name for path in list_folders(folder / "test") if path.name != GOOD]
    rows: list[Row] = [(path, folder.name, split, 0, GOOD, None) for path in list_images(folder / "test" / GOOD)]
    for defect_type in defect_types:
        pairs, _ = pair_masks(folder, defect_type)
        rows += [(path, folder.name, split, 1, defect_type, mask) for path, mask in pairs.items()]
    if not rows:
        raise DataError(f"{folder / 'test'}: no test images there; expected test/good and one folder per defect type")
    return rows


def _header_or_problem(path: Path) -> Header | str:
    try:
        return read_header(path)
    except DataError as error:
        return str(error)
