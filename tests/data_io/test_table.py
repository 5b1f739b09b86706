from __future__ import annotations

import pytest

from msad.data_io.errors import DataError
from msad.data_io.table import COLUMNS, list_categories, read_table
from tests.data_io.conftest import python


def test_read_table_demo_has_every_image_once_and_in_order(demo):
    table = read_table(demo)
    assert tuple(table.columns) == COLUMNS
    assert table["path"].is_unique
    assert len(table) == len([path for part in ("train", "test") for path in demo.glob(f"*/{part}/*/*.png")])
    gear = table[table["category"] == "gear"]
    assert list(gear["defect_type"].unique()) == ["good", "hole", "missing_tooth", "scratch", "stain"]
    assert ((table["label"] == 1) == (table["defect_type"] != "good")).all()
    for row in table.itertuples():
        assert (row.mask_path is None) == (row.label == 0)
        assert row.label == 0 or row.mask_path.name == f"{row.path.stem}_mask.png"
    assert set(table["width"]) == set(table["height"]) == {48}


def test_read_table_gives_each_image_its_own_size(root):
    table = read_table(root)
    assert table[table["defect_type"] == "crack"]["height"].tolist() == [20, 21]


def test_read_table_image_without_mask_gives_none_and_not_nan(root):
    (root / "part" / "ground_truth" / "crack" / "0_mask.png").unlink()
    masks = read_table(root)["mask_path"]
    assert sum(mask is None for mask in masks) == 9 and sum(mask is not None for mask in masks) == 1


def test_read_table_finds_masks_named_as_their_images(root):
    path = root / "part" / "ground_truth" / "crack" / "0_mask.png"
    path.rename(path.with_name("0.png"))
    assert read_table(root, splits=("test",))["mask_path"].iloc[2].name == "0.png"


def test_read_table_unknown_category_names_the_nearest_and_all(demo):
    with pytest.raises(DataError, match=r"no category 'gearr'\. Did you mean 'gear'\? There are: brick, gear, grass"):
        read_table(demo, ["gearr"])


def test_read_table_several_unknown_categories_are_told_at_once(demo):
    with pytest.raises(DataError) as caught:
        read_table(demo, ["gearr", "bricks", "gear"])
    assert "gearr" in str(caught.value) and "bricks" in str(caught.value)


def test_read_table_unknown_split_is_refused(demo):
    with pytest.raises(DataError, match="'validation'"):
        read_table(demo, splits=("validation",))


def test_read_table_names_every_undecodable_file_at_once(root):
    for index in (1, 3):
        (root / "part" / "train" / "good" / f"{index}.png").write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        read_table(root)
    assert "1.png" in str(caught.value) and "3.png" in str(caught.value)


def test_list_categories_of_a_category_hints_at_its_parent(demo):
    with pytest.raises(DataError, match=f"itself a category; give its parent folder {demo}"):
        list_categories(demo / "gear")


def test_list_categories_of_an_empty_or_missing_root_says_which(tmp_path):
    with pytest.raises(DataError, match="no category in it"):
        list_categories(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        list_categories(tmp_path / "none")


def test_read_table_ignores_hidden_files_and_strangers(root):
    before = len(read_table(root))
    (root / "part" / "train" / "good" / ".DS_Store").write_bytes(b"x")
    (root / "part" / "train" / "good" / "._0.png").write_bytes(b"x")
    (root / "part" / "train" / "good" / "notes.txt").write_text("x")
    assert len(read_table(root)) == before


def test_reading_train_opens_no_test_file(demo, tmp_path):
    # An audit hook sees every open() of the process, whichever library makes it.
    code = """
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from msad.data_io.cache import digests, load_images
from msad.data_io.check import check
from msad.data_io.splits import split_good_images
from msad.data_io.table import read_table
root, cache = sys.argv[1:]
assert len(read_table(root, splits=("train",))) == 40
assert check(root, splits=("train",)).ok
split = split_good_images(root, "gear", 0)
load_images(split.train_paths, 32, cache), load_images(split.validation_paths, 32, cache)
digests(split.train_paths, cache)
inside = [path for path in opened if path.startswith(root)]
assert inside, "the hook saw nothing"
seen = [path for path in inside if "/train/good/" not in path]
assert not seen, seen
check(root)
assert any("/test/" in path for path in opened), "the hook would not have seen it"
"""
    process = python(code, demo, tmp_path)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


def test_read_table_real_root_counts_as_published(real_root):
    table = read_table(real_root)
    counts = table.groupby(["category", "split", "defect_type"]).size()
    assert counts["bottle", "train", "good"] == 209 and counts["magnetic_tile", "train", "good"] == 761
    assert counts["bottle", "test", "contamination"] == 21 and counts["magnetic_tile", "test", "blowhole"] == 115
    assert table[table["label"] == 1]["mask_path"].notna().all()
