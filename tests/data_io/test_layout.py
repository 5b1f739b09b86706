"""Every layout against one tree in its published form."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from msad.data_io.check import check, format_report
from msad.data_io.errors import DataError
from msad.data_io.layout import LAYOUTS, choose_categories, find_layout, known_layout, list_categories
from msad.data_io.layouts.annotated import Annotated
from msad.data_io.splits import split_good_images
from msad.data_io.table import read_table
from msad.data_io.test_split import TestSplit
from tests.data_io.conftest import python
from tests.data_io.trees import TREES, Tree

# Of MVTec AD's layout; they look like it too, and go before it.
VARIANTS = ("mvtec_ad_2", "mvtec_loco", "btad")


@pytest.fixture(scope="session")
def trees(tmp_path_factory) -> dict[str, Tree]:
    """All trees; read only."""
    folder = tmp_path_factory.mktemp("trees")
    built = {}
    for name, build in TREES.items():
        (folder / name).mkdir()
        built[name] = build(folder / name)
    return built


@pytest.fixture(params=TREES)
def tree(request, trees) -> Tree:
    return trees[request.param]


def relative(tree, paths) -> list[str]:
    return [path.relative_to(tree.root).as_posix() for path in paths]


def test_every_tree_is_told_and_by_no_layout_but_its_own(tree):
    assert find_layout(tree.root).name == tree.layout
    for other in LAYOUTS.values():
        if isinstance(other, Annotated):  # never told by what lies there
            continue
        if other.name == tree.layout:
            assert other.categories(tree.root)
        elif other.name != "mvtec_ad" or tree.layout not in VARIANTS:
            assert not other.categories(tree.root), other.name


def test_layout_by_name_reads_what_auto_reads(tree):
    categories = list(tree.test)
    assert read_table(tree.root, categories, layout=tree.layout).equals(read_table(tree.root, categories))


def test_categories_are_those_of_the_tree(tree):
    assert list_categories(tree.root) == list(tree.train)


def test_train_rows_are_the_good_training_images_and_no_others(tree):
    table = read_table(tree.root, splits=("train",))
    assert (table["label"] == 0).all() and (table["defect_type"] == "good").all()
    for category, images in tree.train.items():
        assert sorted(relative(tree, table[table["category"] == category]["path"])) == sorted(images)


def test_test_rows_have_their_types_good_first(tree):
    for category, expected in tree.test.items():
        split = TestSplit(tree.root, category)
        assert dict(zip(relative(tree, split.paths), split.defect_types, strict=True)) == expected
        assert split.labels.tolist() == [int(name != "good") for name in split.defect_types]
        assert split.labels.tolist() == sorted(split.labels)
        assert not set(relative(tree, split.paths)) & set(tree.unread + tree.train[category])


def test_masks_are_what_was_drawn(tree):
    for category in tree.test:
        split = TestSplit(tree.root, category)
        for path, mask in zip(relative(tree, split.paths), split.masks(), strict=True):
            assert np.array_equal(mask, tree.masks.get(path, np.zeros_like(mask))), path


def test_train_and_validation_come_from_the_good_training_images(tree):
    for category, images in tree.train.items():
        split = split_good_images(tree.root, category, seed=0)
        parts = relative(tree, split.train_paths), relative(tree, split.validation_paths)
        assert sorted(parts[0] + parts[1]) == sorted(images) and all(parts)
        if tree.layout in ("mvtec_ad_2", "mvtec_loco"):
            assert all("/validation/" in path for path in parts[1]) and "/validation/" not in "".join(parts[0])
            assert split_good_images(tree.root, category, seed=1) == split


def test_check_finds_nothing_wrong_with_a_sound_tree(tree):
    report = check(tree.root)
    expected = {"nut": 1, "bolt": 1} if "nut" in tree.train else {}
    assert [problem.severity for problem in report.problems] == ["warning"] * len(expected), format_report(report)
    assert report.layout == tree.layout and f"layout {tree.layout}" in format_report(report)
    counts = report.summary.groupby("category")["images"].sum().to_dict()
    assert counts == {name: len(tree.train[name]) + len(tree.test.get(name, ())) for name in tree.train}
    assert report.summary["masks"].sum() == len(tree.masks)


def test_reading_train_opens_no_file_of_the_test(trees, tmp_path):
    # An audit hook sees every open() of the process, whichever library makes it; a new cache skips none.
    code = """
import json, sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from msad.data_io.cache import digests, load_images
from msad.data_io.check import check
from msad.data_io.splits import split_good_images
from msad.data_io.table import read_table
from msad.data_io.test_split import TestSplit
for root, test_files, categories in json.loads(sys.argv[1]):
    for category in categories:
        assert len(read_table(root, [category], splits=("train",)))
        split = split_good_images(root, category, 0)
        load_images([*split.train_paths, *split.validation_paths], 16)
        digests(split.train_paths)
    assert check(root, splits=("train",)).ok, root
    assert any(path.startswith(root) for path in opened), "the hook saw nothing"
    seen = set(test_files) & set(opened)
    assert not seen, seen
    assert check(root).ok
    missed = {path for path in test_files if "test_private" not in path and "MT_Free" not in path} - set(opened)
    assert not missed, f"the hook would not have seen {missed}"
"""
    roots = [
        (str(tree.root), [str(tree.root / path) for path in tree.test_files()], list(tree.train))
        for tree in trees.values()
    ]
    process = python(f"import os; os.environ['MSAD_CACHE'] = {str(tmp_path)!r}\n{code}", json.dumps(roots))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


def rewrite(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


FAULTS = {
    "mvtec_ad": (
        lambda root: (root / "cable/ground_truth/contamination/001_mask.png").unlink(),
        "cable/test/contamination/001.png",
        "has no mask; expected ground_truth/contamination/001_mask.png",
    ),
    "mvtec_ad_2": (
        lambda root: (root / "can/test_public/ground_truth/bad/000_overexposed_mask.png").unlink(),
        "can/test_public/bad/000_overexposed.png",
        "expected test_public/ground_truth/bad/000_overexposed_mask.png",
    ),
    "mvtec_loco": (
        lambda root: shutil.rmtree(root / "pushpins/ground_truth/logical_anomalies/001"),
        "pushpins/test/logical_anomalies/001.png",
        "expected ground_truth/logical_anomalies/001/000.png",
    ),
    "mvtec_loco ": (
        lambda root: Image.new("L", (5, 5), 255).save(root / "pushpins/ground_truth/logical_anomalies/001/001.png"),
        "pushpins/ground_truth/logical_anomalies/001/001.png",
        "is 5×5 but its image 001.png is 24×20",
    ),
    "visa": (lambda root: (root / "split_csv/1cls.csv").unlink(), "split_csv/1cls.csv", "says which images are for"),
    "visa ": (
        lambda root: (root / "pcb1/Data/Masks/Anomaly/001.png").unlink(),
        "pcb1/Data/Images/Anomaly/001.JPG",
        "expected Data/Masks/Anomaly/001.png",
    ),
    "visa  ": (
        lambda root: (root / "pcb1/Data/Images/Normal/0001.JPG").unlink(),
        "pcb1/Data/Images/Normal/0001.JPG",
        "",
    ),
    "visa   ": (
        lambda root: rewrite(root / "split_csv/1cls.csv", "candle/Data/Images/Normal/0000.JPG", "../secret.png"),
        "split_csv/1cls.csv",
        "leads out of the dataset",
    ),
    "btad": (
        lambda root: (root / "01/test/ko/0000.bmp").write_bytes(b"no image"),
        "01/test/ko/0000.bmp",
        "cannot be decoded",
    ),
    "kolektor_sdd": (
        lambda root: (root / "kos01/Part0_label.bmp").unlink(),
        "kos01/Part0.jpg",
        "has no mask Part0_label.bmp beside it",
    ),
    "kolektor_sdd ": (
        lambda root: (root / "kos02/Part1_label.bmp").write_bytes(b"x"),
        "kos02/Part1_label.bmp",
        "cannot be decoded",
    ),
    "kolektor_sdd2": (
        lambda root: (root / "test/20001.png").unlink(),
        "test/20001_GT.png",
        "mask without its image",
    ),
    "dagm": (
        lambda root: (root / "Class10/Train/Label/Labels.txt").unlink(),
        "Class10/Train/Label/Labels.txt",
        "says which images are good",
    ),
    "dagm ": (
        lambda root: rewrite(root / "Class1/Train/Label/Labels.txt", "0579\t1", "0579\t0"),
        "Class1/Train/0579.PNG",
        "has a mask, but",
    ),
    "magnetic_tile": (
        lambda root: (root / "MT_Crack/Imgs/exp1_num_2001.png").unlink(),
        "MT_Crack/Imgs/exp1_num_2001.jpg",
        "expected exp1_num_2001.png beside it",
    ),
    "folder": (lambda root: (root / "masks/1.png").unlink(), "bad/1.jpg", "expected masks/1.png or masks/bad/1.png"),
    "folder ": (
        lambda root: (root / "masks/scratch/0_mask.png").unlink(),
        "masks/0.png",
        "is the mask of two images of one name",
    ),
    "folder_of_products": (lambda root: shutil.rmtree(root / "nut/normal/"), "nut", "is no product"),
}


# A missing mask leaves the images to be measured by.
ONLY_WARNED = ("folder_of_products", "mvtec_ad", "mvtec_ad_2", "mvtec_loco", "visa ", "magnetic_tile", "folder")


@pytest.mark.parametrize("fault", FAULTS)
def test_check_finds_a_planted_fault_with_its_path(fault, trees, tmp_path):
    spoil, where, text = FAULTS[fault]
    root = tmp_path / "root"
    shutil.copytree(trees[fault.strip()].root, root)
    spoil(root)
    report = check(root)
    found = [problem for problem in report.problems if problem.path == root / where and text in problem.message]
    assert found, format_report(report)
    assert report.ok == (fault in ONLY_WARNED)
    assert len(report.problems) == len(set(report.problems))


def test_two_datasets_in_one_folder_are_told_apart_by_name_only(trees, tmp_path):
    for name in ("visa", "dagm"):
        shutil.copytree(trees[name].root, tmp_path, dirs_exist_ok=True)
    with pytest.raises(DataError, match=r"looks like visa \(.*\) and dagm \(.*\); say which with --layout"):
        find_layout(tmp_path)
    assert list_categories(tmp_path, "dagm") == ["Class1", "Class10"]
    assert not check(tmp_path).ok and check(tmp_path, layout="visa").ok


def test_folder_that_fits_no_layout_says_what_was_looked_for(tmp_path):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(DataError) as caught:
        find_layout(tmp_path)
    assert all(
        f"{name}: {layout.signature}" in str(caught.value)
        for name, layout in LAYOUTS.items()
        if name not in ("mpdd", "mvtec_ad", "csv", "coco", "lookout")
    )


def test_folder_of_loose_images_says_where_to_put_them(tmp_path):
    Image.new("L", (5, 5)).save(tmp_path / "0.png")
    with pytest.raises(DataError, match=f"put those of good parts into {tmp_path}/good, and defective ones"):
        find_layout(tmp_path)


def test_root_that_is_not_in_the_layout_it_was_said_to_be_in(trees):
    with pytest.raises(DataError, match=r"no category in it that is laid out as visa; looked for CATEGORY/Data"):
        choose_categories(trees["dagm"].root, None, "visa")


def test_unknown_layout_names_the_nearest():
    with pytest.raises(DataError, match=r"no layout 'vsia'. Did you mean 'visa'\? There are: auto, btad"):
        known_layout("vsia")


def test_category_given_as_root_names_its_parent_in_every_layout(trees):
    for name, category in (("visa", "candle"), ("btad", "01"), ("dagm", "Class1")):
        with pytest.raises(DataError, match=f"itself a category; give its parent folder {trees[name].root}"):
            find_layout(trees[name].root / category)
