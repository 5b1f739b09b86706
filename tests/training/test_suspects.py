"""Suspects among the good images: planted defects come first, whatever their place in the folder."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from msad.data_io.errors import DataError
from msad.training.suspects import PICTURED, find_suspects


@pytest.fixture(scope="module")
def planted(demo, category, tmp_path_factory):
    """The demo's category with two test images of each kind of defect among its good ones, and their names."""
    root = tmp_path_factory.mktemp("planted")
    shutil.copytree(demo / category / "train", root / category / "train")
    names = []
    for folder in sorted((demo / category / "test").iterdir()):
        for image in sorted(folder.iterdir())[:2] if folder.name != "good" else ():
            names.append(f"{len(names):03}_{folder.name}.png")
            shutil.copy(image, root / category / "train" / "good" / names[-1])
    return root, names


def test_planted_defects_are_among_the_first(planted, category, own_cache):
    root, names = planted
    found = find_suspects(root, category, image_size=64, cache=own_cache)
    assert len(found.paths) == 16 + len(names) == len(found.deviations)
    assert (np.diff(found.deviations) <= 0).all()
    first = {path.name for path in found.paths[: len(names) + 4]}
    assert len(first & {*names}) >= len(names) * 2 / 3
    assert found.images.shape == (min(PICTURED, len(found.paths)), 64, 64, 3)
    assert found.maps.shape == (len(found.images), 16, 16)
    assert found.category == category and found.stands_out.dtype == bool


def test_order_is_the_same_again_and_no_test_file_is_needed(planted, category, own_cache):
    one, other = (find_suspects(planted[0], category, image_size=64, cache=own_cache) for _ in range(2))
    assert one.paths == other.paths and np.array_equal(one.deviations, other.deviations)


def test_nothing_outside_of_the_region_of_interest_is_shown(planted, category, own_cache, tmp_path):
    shutil.copytree(planted[0], root := tmp_path / "data")
    inside = np.zeros((64, 64), np.uint8)
    inside[:, :32] = 255
    Image.fromarray(inside).save(root / category / "roi.png")
    found = find_suspects(root, category, image_size=64, cache=own_cache)
    for one in found.maps:
        assert (one[:, 8:] == one[:, :8].min()).all() and np.ptp(one[:, :8]) > 0


def test_category_that_is_missing_or_too_small_is_refused(planted, category, tmp_path):
    with pytest.raises(DataError, match="no category 'nothing'"):
        find_suspects(planted[0], "nothing")
    folder = tmp_path / "few" / "train" / "good"
    folder.mkdir(parents=True)
    shutil.copy(next((planted[0] / category / "train" / "good").iterdir()), folder)
    with pytest.raises(DataError, match="few has 1 good images; at least 4 are needed"):
        find_suspects(tmp_path, "few")
