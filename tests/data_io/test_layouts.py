"""What is particular to single layouts."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from msad.data_io.check import check
from msad.data_io.errors import DataError
from msad.data_io.layout import find_layout, list_categories
from msad.data_io.layouts.base import hold_out
from msad.data_io.splits import split_good_images
from msad.data_io.table import read_table
from msad.data_io.test_split import TestSplit
from tests.data_io import trees


def names(paths):
    return sorted(path.name for path in paths)


def test_hold_out_depends_on_names_alone_and_hardly_changes_with_one_image_more():
    paths = [Path(f"/a/{index}.png") for index in range(100)]
    kept, held_out = hold_out(paths, 0.2)
    assert len(held_out) == 20 and sorted([*kept, *held_out]) == sorted(paths)
    assert names(hold_out([Path("/b") / path.name for path in reversed(paths)], 0.2)[1]) == names(held_out)
    more = set(hold_out([*paths, Path("/a/new.png")], 0.2)[1])
    assert len(more ^ set(held_out)) <= 2


@pytest.mark.parametrize(("count", "held"), [(3, 0), (4, 0), (5, 1), (6, 1), (20, 4)])
def test_hold_out_leaves_enough_to_learn_from(count, held):
    paths = [Path(f"{index}.png") for index in range(count)]
    assert len(hold_out(paths, 0.2, leave=4)[1]) == held


def test_kolektor_sdd_keeps_the_images_of_an_item_together(tmp_path):
    trees.kolektor_sdd(tmp_path)
    table = read_table(tmp_path)
    items = {split: {path.parent.name for path in rows["path"]} for split, rows in table.groupby("split")}
    assert items == {"test": {"kos03", "kos06"}, "train": {"kos01", "kos02", "kos04", "kos05"}}
    shutil.rmtree(tmp_path / "kos01")
    assert {path.parent.name for path in read_table(tmp_path, splits=("test",))["path"]} == items["test"]


def test_magnetic_tile_without_the_published_list_holds_out_a_fifth(tmp_path):
    tree = trees.magnetic_tile(tmp_path)
    published = names(find_layout(tmp_path).train(tmp_path, "magnetic_tile"))
    (tmp_path / "mtd_train_filenames.txt").unlink()
    train = names(find_layout(tmp_path).train(tmp_path, "magnetic_tile"))
    held_out = names(path for path, kind in zip(*paths_and_types(tmp_path), strict=True) if kind == "good")
    assert (len(train), len(held_out)) == (8, 2) and train != published
    assert sorted(train + held_out) == sorted(path.name for path in (tmp_path / "MT_Free/Imgs").glob("*.jpg"))
    assert len(tree.test["magnetic_tile"]) == 7  # 3 good and 4 defective with the list


def paths_and_types(root):
    split = TestSplit(root, "magnetic_tile")
    return split.paths, split.defect_types


def test_magnetic_tile_list_that_names_missing_images_is_a_warning(tmp_path):
    trees.magnetic_tile(tmp_path)
    with (tmp_path / "mtd_train_filenames.txt").open("a") as file:
        file.write("exp1_num_9.jpg\n")
    (problem,) = check(tmp_path).problems
    assert problem.severity == "warning" and "lists 1 images that are not in MT_Free/Imgs" in problem.message


def test_visa_images_outside_of_the_list_are_told_and_not_read(tmp_path):
    tree = trees.visa(tmp_path)
    tree.image("candle/Data/Images/Normal/9999.JPG")
    (problem,) = check(tmp_path).problems
    assert "1 files are not in split_csv/1cls.csv and are ignored, 9999.JPG" in problem.message
    assert "9999.JPG" not in names(read_table(tmp_path)["path"])


def test_dagm_class_folder_inside_of_itself_is_found(tmp_path):
    tree = trees.dagm(tmp_path / "once")
    for category in tree.train:
        (tmp_path / "twice" / category).mkdir(parents=True)
        shutil.move(tmp_path / "once" / category, tmp_path / "twice" / category / category)
    assert list_categories(tmp_path / "twice") == ["Class1", "Class10"]
    assert check(tmp_path / "twice").ok and len(TestSplit(tmp_path / "twice", "Class10")) == 5


def test_dagm_image_with_a_mask_is_never_learned_from_whatever_the_list_says(tmp_path):
    tree = trees.dagm(tmp_path)
    path = tmp_path / "Class1/Train/Label/Labels.txt"
    path.write_text(path.read_text().replace("0579\t1", "0579\t0"))
    assert "0579.PNG" not in names(find_layout(tmp_path).train(tmp_path, "Class1"))
    assert len(tree.train["Class1"]) == 6


@pytest.fixture
def product(tmp_path):
    """A product with twenty good images and nothing else."""
    tree = trees.Tree(tmp_path / "washer", "folder")
    for index in range(20):
        tree.image(f"good/{index}.png")
    return tree


def test_folder_of_good_images_alone_is_all_for_training(product):
    assert list_categories(product.root) == ["washer"]
    assert len(read_table(product.root, splits=("train",))) == 20
    report = check(product.root)
    assert report.ok and "can be searched but not be measured" in report.problems[0].message
    with pytest.raises(DataError, match=r"bad: no test images there; expected a folder bad with defective images"):
        TestSplit(product.root, "washer")


def test_folder_with_defective_images_keeps_a_fifth_of_the_good_for_the_test(product):
    product.image("bad/0.png")
    product.mask("masks/0.png")
    split = TestSplit(product.root, "washer")
    assert split.labels.tolist() == [0] * 4 + [1] and split.has_masks
    good = split_good_images(product.root, "washer", seed=0)
    assert len(good.train_paths) + len(good.validation_paths) == 16
    assert not {*good.train_paths, *good.validation_paths} & set(split.paths)


def test_folder_without_any_mask_is_complete_and_its_pixels_unknown(product):
    product.image("bad/0.png")
    split = TestSplit(product.root, "washer")
    assert not split.has_masks and not split.masks(16).any()
    report = check(product.root)
    assert report.ok and "cannot be measured" in report.problems[0].message


def test_folder_with_masks_for_some_is_measured_on_those_and_says_so(product):
    for index in range(2):
        product.image(f"bad/{index}.png")
    product.mask("masks/1_mask.png")
    split = TestSplit(product.root, "washer")
    assert split.masked.tolist() == [True] * 4 + [False, True]
    assert split.remarks(16) == ["1 of 2 defective images have no mask: pixels are measured on the others"]
    (problem,) = check(product.root).problems
    assert (problem.severity, problem.path.name) == ("warning", "0.png") and "without 1 of the 2" in problem.message


def test_folder_names_may_be_in_any_case_and_unknown_ones_are_told(product):
    (product.root / "good").rename(product.root / "OK")
    product.image("NG/crack/7.jpg")
    mask = product.mask("Ground_Truth/crack/7.png")
    product.image("later/0.png")
    split = TestSplit(product.root, "washer")
    assert split.defect_types[-1] == "crack" and np.array_equal(list(split.masks())[-1], mask)
    (problem,) = check(product.root).problems
    assert problem.path.name == "later" and "is ignored" in problem.message
