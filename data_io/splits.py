"""Train and validation, both cut from the good training images; the test split is of another type (`test_split`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from msad.data_io.errors import DataError
from msad.data_io.layout import AUTO, choose_categories, find_layout
from msad.data_io.layouts.faults import FEWEST_GOOD_IMAGES


@dataclass(frozen=True)
class GoodSplit:
    """The good images of one category, cut in two; paths sorted by name."""

    category: str
    train_paths: tuple[Path, ...]
    validation_paths: tuple[Path, ...]


def split_good_images(
    root: Path | str,
    category: str,
    seed: int,
    validation_fraction: float = 0.15,
    minimum: int = 10,
    layout: str = AUTO,
) -> GoodSplit:
    """Cut the good training images into train and validation, at random by seed. Lists names; opens no image.

    A dataset that comes with a validation split of its own (MVTec AD 2, MVTec LOCO AD) is cut there, whatever the seed.

    Validation gets `validation_fraction` of the images, at least `minimum`, but never more than half: with fewer than
    2 × minimum images both parts are (nearly) equal, the odd image going to train. The cut depends on the file names
    and the seed only, not on where the dataset lies.

    Parameters
    ----------
    root, category : the dataset and the category in it.
    seed : any non-negative integer; the same seed gives the same cut on every machine.
    validation_fraction : in (0, 1).
    minimum : the least number of validation images, at least 1.
    layout : see `msad.data_io.layout.find_layout`.

    Raises
    ------
    DataError : no such root or category, fewer than 4 good images, or a fraction or minimum out of range.
    """
    if not 0 < validation_fraction < 1 or minimum < 1:
        raise DataError(
            f"validation_fraction {validation_fraction} must lie between 0 and 1 and minimum {minimum} be at least 1"
        )
    (category,) = choose_categories(root, [category], layout)
    found = find_layout(root, layout)
    paths = found.train(Path(root), category)
    if len(paths) < FEWEST_GOOD_IMAGES:
        raise DataError(
            f"{found.train_folder(Path(root), category)}: {len(paths)} good images; at least {FEWEST_GOOD_IMAGES} are "
            "needed, some hundred are better"
        )
    chosen = set(found.validation(Path(root), category))
    if min(len(chosen), len(paths) - len(chosen)) < FEWEST_GOOD_IMAGES // 2:
        count = min(max(minimum, round(validation_fraction * len(paths))), len(paths) // 2)
        chosen = {paths[index] for index in np.random.default_rng(seed).permutation(len(paths))[:count]}
    return GoodSplit(
        category=category,
        train_paths=tuple(path for path in paths if path not in chosen),
        validation_paths=tuple(path for path in paths if path in chosen),
    )
