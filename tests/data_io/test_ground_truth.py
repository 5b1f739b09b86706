from __future__ import annotations

import os
from pathlib import Path

import pytest

from msad.data_io.files import IMAGE_SUFFIXES
from msad.data_io.ground_truth import mask_files, mask_folders
from tests.data_io.trees import TREES


def photographs(root):
    """Every image file below a root that is no mask."""
    for name, folders, files in os.walk(root):
        no_images = mask_files(files, Path(name).name)
        folders[:] = set(folders) - mask_folders(folders)
        yield from (Path(name) / file for file in {*files} - no_images if file.lower().endswith(IMAGE_SUFFIXES))


@pytest.mark.parametrize("layout", TREES)
def test_masks_of_every_layout_are_told_from_its_images(layout, tmp_path):
    tree = TREES[layout](tmp_path)
    images = {path for paths in tree.train.values() for path in paths}
    images |= {path for paths in tree.test.values() for path in paths} | {*tree.unread}
    assert {str(path.relative_to(tree.root)) for path in photographs(tree.root)} == images


def test_images_that_only_sound_like_masks_are_images():
    assert mask_folders(["masks", "gloves"]) == set()  # products
    assert mask_folders(["good", "bad", "Masks"]) == {"Masks"}
    assert mask_files(["face_mask.png", "part.png"], "good") == set()
    assert mask_files(["part_mask.png", "part.jpg"], "good") == {"part_mask.png"}
    assert mask_files(["0.png", "0.jpg"], "good") == set()
