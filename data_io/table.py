"""A dataset root as a table: one row per image."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

import pandas as pd

from msad.data_io.decode import Header, read_header
from msad.data_io.errors import DataError, NoTestImages
from msad.data_io.layout import AUTO, GOOD, SPLITS, choose_categories, find_layout, list_categories
from msad.data_io.layouts.base import Layout
from msad.data_io.parallel import map_in_threads

__all__ = ["COLUMNS", "list_categories", "read_table"]

COLUMNS = ("path", "category", "split", "label", "defect_type", "mask_path", "width", "height")
Row = tuple[Path, str, str, int, str, Path | None]


def read_table(
    root: Path | str,
    categories: Iterable[str] | None = None,
    splits: Collection[str] = SPLITS,
    layout: str = AUTO,
) -> pd.DataFrame:
    """List the images of a dataset root.

    Only headers are read, and only of the asked splits: with `splits=("train",)` no file of the test split is opened.

    Parameters
    ----------
    root : the dataset's root.
    categories : names to keep; None for all.
    splits : "train", "test" or both. A dataset's own validation images are good ones to learn from, so "train".
    layout : see `msad.data_io.layout.find_layout`.

    Returns
    -------
    One row per image, sorted by category, split (train first), defect type (good first) and file name: `path` (Path),
    `category`, `split`, `label` (0 good, 1 defective), `defect_type` ("good" or the type's name), `mask_path` (Path of
    a file, or of a folder of files whose union is the mask, or None: good, or no mask there), `width` and `height` in
    pixels as looked at, EXIF orientation applied.

    Raises
    ------
    DataError : no such root, category (with the nearest name), split or layout; a category without good training images
        where asked for, or (`NoTestImages`) without test images; files that are no images (all of them in one error).
    """
    splits = [splits] if isinstance(splits, str) else splits
    unknown = sorted(set(splits) - set(SPLITS))
    if unknown:
        raise DataError(f"no split {', '.join(map(repr, unknown))}; there are 'train' and 'test'")
    names, found = choose_categories(root, categories, layout), find_layout(root, layout)
    rows: list[Row] = [
        row for name in names for split in SPLITS if split in splits for row in _rows(found, Path(root), name, split)
    ]

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


def _rows(layout: Layout, root: Path, category: str, split: str) -> list[Row]:
    if split == "train":
        images = layout.train(root, category)
        if not images:
            raise DataError(f"{layout.train_folder(root, category)}: no images of good parts there; put them there")
        return [(path, category, split, 0, GOOD, None) for path in images]
    samples = layout.test(root, category)
    if not samples:
        raise NoTestImages(
            f"{layout.test_folder(root, category)}: no test images there; expected {layout.expects_test}"
        )
    return [(one.path, category, split, one.label, one.defect_type, one.mask_path) for one in samples]


def _header_or_problem(path: Path) -> Header | str:
    try:
        return read_header(path)
    except DataError as error:
        return str(error)
