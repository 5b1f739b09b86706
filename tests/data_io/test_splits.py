from __future__ import annotations

import shutil

import pytest

from msad.data_io.errors import DataError
from msad.data_io.splits import split_good_images


def make_good(root, count):
    folder = root / "part" / "train" / "good"
    folder.mkdir(parents=True)
    for index in range(count):
        (folder / f"{index:03d}.png").touch()  # a split lists names and opens nothing
    return root


@pytest.mark.parametrize(
    ("count", "validation"), [(4, 2), (5, 2), (19, 9), (20, 10), (60, 10), (100, 15), (209, 31), (761, 114)]
)
def test_split_sizes_are_15_percent_at_least_10_at_most_half(tmp_path, count, validation):
    split = split_good_images(make_good(tmp_path, count), "part", seed=0)
    assert len(split.validation_paths) == validation
    assert len(split.train_paths) == count - validation


def test_split_parts_are_disjoint_sorted_and_whole(tmp_path):
    split = split_good_images(make_good(tmp_path, 50), "part", seed=3)
    assert not set(split.train_paths) & set(split.validation_paths)
    assert len({*split.train_paths, *split.validation_paths}) == 50
    assert list(split.train_paths) == sorted(split.train_paths)


def test_split_same_seed_cuts_alike_wherever_the_dataset_lies(tmp_path):
    first = make_good(tmp_path / "a", 50)
    shutil.copytree(first, tmp_path / "b")
    names = [
        [path.name for path in split_good_images(root, "part", seed).validation_paths]
        for root, seed in [(first, 1), (tmp_path / "b", 1), (first, 2)]
    ]
    assert names[0] == names[1] != names[2]


def test_split_of_too_few_images_is_refused(tmp_path):
    with pytest.raises(DataError, match="3 good images; at least 4"):
        split_good_images(make_good(tmp_path, 3), "part", seed=0)


def test_split_unknown_category_names_the_nearest(tmp_path):
    with pytest.raises(DataError, match="Did you mean 'part'"):
        split_good_images(make_good(tmp_path, 5), "parts", seed=0)


@pytest.mark.parametrize("options", [{"validation_fraction": 0.0}, {"validation_fraction": 1.0}, {"minimum": 0}])
def test_split_options_out_of_range_are_refused(tmp_path, options):
    with pytest.raises(DataError, match="between 0 and 1"):
        split_good_images(make_good(tmp_path, 5), "part", seed=0, **options)
