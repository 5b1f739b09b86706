"""Known defects: where they lie in every layout, what a check says of them, and what is read."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msad.data_io.check import check, format_report
from msad.data_io.errors import DataError
from msad.data_io.known_defects import KnownDefectFiles
from msad.data_io.layout import find_layout
from msad.data_io.splits import split_good_images
from msad.data_io.test_split import TestSplit
from tests.data_io.conftest import python
from tests.data_io.trees import TREES, mvtec_ad


def add_known(tree, category, *, masks=True):
    """Add two scratches and a dent to a tree's category, one scratch without a mask; return paths, types and masks."""
    folder = find_layout(tree.root).validation_folder(tree.root, category).relative_to(tree.root)
    found = []
    for defect_type, count in (("dent", 1), ("scratch", 2)):
        for index in range(count):
            image = tree.image(f"{folder}/{defect_type}/{index}.png")
            one_file = f"{index}.png" if tree.layout != "mvtec_loco" else f"{index}/000.png"
            marked = tree.mask(f"{folder}/ground_truth/{defect_type}/{one_file}") if masks and index == 0 else None
            found.append((image, defect_type, marked))
    return found


@pytest.fixture(params=TREES)
def tree(request, tmp_path):
    root = tmp_path / request.param
    root.mkdir()
    return TREES[request.param](root)


@pytest.fixture
def part(tmp_path):
    return mvtec_ad(tmp_path, categories=("bottle",))


def problems(report):
    return {(one.severity, one.path.relative_to(report.root).as_posix()): one.message for one in report.problems}


def test_known_defects_are_found_in_every_layout_and_belong_to_no_split(tree):
    category = next(iter(tree.train))
    before = find_layout(tree.root).name, split_good_images(tree.root, category, 0)
    warned = len(check(tree.root).problems)
    expected = add_known(tree, category)
    files = KnownDefectFiles.find(tree.root, category)
    assert [path.relative_to(tree.root).as_posix() for path in files.paths] == [image for image, _, _ in expected]
    assert files.defect_types == tuple(defect_type for _, defect_type, _ in expected)
    marked, masked = files.masks((20, 24))
    assert masked.tolist() == [True, True, False]
    for found, (_, _, mask) in zip(marked, expected, strict=True):
        assert np.array_equal(found, np.zeros_like(found) if mask is None else mask)
    assert (find_layout(tree.root).name, split_good_images(tree.root, category, 0)) == before
    if category in tree.test:
        assert not {*files.paths} & {*TestSplit(tree.root, category).paths}
    report = check(tree.root)
    assert report.ok and len(report.problems) == warned, format_report(report)
    rows = report.summary[report.summary["split"] == "validation"]
    assert rows[["category", "defect_type", "images", "masks"]].to_numpy().tolist() == [
        [category, "dent", 1, 1],
        [category, "scratch", 2, 1],
    ]


def test_category_without_known_defects_has_none(part):
    files = KnownDefectFiles.find(part.root, "bottle")
    assert not len(files) and files.digests() == files.mask_digests() == []
    with pytest.raises(DataError, match="no category 'bottel'"):
        KnownDefectFiles.find(part.root, "bottel")


def test_mask_digests_say_which_are_missing_and_change_with_a_mask(part):
    add_known(part, "bottle")
    before = KnownDefectFiles.find(part.root, "bottle").mask_digests()
    assert before[2] == "-" and len(before[0]) == len(before[1]) == 64
    part.mask("bottle/validation/ground_truth/dent/0.png")
    after = KnownDefectFiles.find(part.root, "bottle").mask_digests()
    assert before[0] != after[0] and before[1:] == after[1:]


@pytest.mark.parametrize(("count", "taught"), [(1, []), (2, [1]), (5, [1, 3])])
def test_every_second_defect_with_a_mask_is_trained_on_where_that_is_asked(part, count, taught):
    for index in range(count):
        part.image(f"bottle/validation/dent/{index}.png")
        part.mask(f"bottle/validation/ground_truth/dent/{index}_mask.png")
    part.image("bottle/validation/scratch/0.png")
    files = KnownDefectFiles.find(part.root, "bottle")
    judged, trained = files.divided(True)
    assert trained.paths == [files.paths[index] for index in taught]
    assert sorted([*judged.paths, *trained.paths]) == files.paths
    judged, trained = files.divided(False)
    assert judged.paths == files.paths and not len(trained)


@pytest.mark.parametrize("splits", [("train",), ("train", "test")])
def test_known_defect_that_is_a_test_image_too_is_refused(part, splits):
    add_known(part, "bottle")
    twin = part.root / "bottle/validation/scratch/1.png"
    shutil.copy(part.root / "bottle/test/contamination/001.png", twin)
    found = problems(check(part.root, splits=splits))
    assert list(found) == [("error", "bottle/validation/scratch/1.png")]
    assert "is the test image" in found["error", "bottle/validation/scratch/1.png"]
    assert "remove it from one of the two" in found["error", "bottle/validation/scratch/1.png"]


def test_known_defect_among_the_images_to_learn_from_is_refused(part):
    add_known(part, "bottle")
    shutil.copy(part.root / "bottle/validation/dent/0.png", part.root / "bottle/train/good/dent.png")
    ((_, message),) = problems(check(part.root, splits=("train",))).items()
    assert "as if it were good" in message


def test_check_before_a_search_opens_of_the_test_only_what_is_as_long_as_a_known_defect(part):
    add_known(part, "bottle")
    shutil.copy(part.root / "bottle/test/contamination/001.png", part.root / "bottle/validation/scratch/1.png")
    code = """
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from msad.data_io.check import check
check(sys.argv[1], splits=("train",))
print(*sorted({path for path in opened if "/test/" in path}), sep="\\n")
"""
    lengths = {path.stat().st_size for path in part.root.glob("bottle/validation/*/*.png")}
    output, errors = python(code, part.root).communicate(timeout=120)
    seen = [Path(line) for line in output.splitlines()]
    assert part.root / "bottle/test/contamination/001.png" in seen, errors
    assert all(path.stat().st_size in lengths for path in seen)


FAULTS = {
    "no images": (
        lambda folder: (folder / "stain").mkdir(),
        ("error", "bottle/validation/stain", "holds no images"),
    ),
    "loose": (
        lambda folder: Image.new("L", (24, 20), 9).save(folder / "0.png"),
        ("warning", "bottle/validation", "a folder per type of defect"),
    ),
    "broken": (
        lambda folder: (folder / "dent" / "0.png").write_bytes(b"no image"),
        ("error", "bottle/validation/dent/0.png", "cannot be decoded"),
    ),
    "orphan": (
        lambda folder: Image.new("L", (24, 20), 9).save(folder / "ground_truth" / "dent" / "7.png"),
        ("warning", "bottle/validation/ground_truth/dent", "match no image"),
    ),
    "mask size": (
        lambda folder: Image.new("L", (5, 5), 255).save(folder / "ground_truth" / "dent" / "0.png"),
        ("error", "bottle/validation/ground_truth/dent/0.png", "is 5×5 but its image 0.png is 24×20"),
    ),
    "masks of nothing": (
        lambda folder: shutil.move(folder / "dent", folder / "gone"),
        ("error", "bottle/validation/ground_truth/dent", "masks without images"),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_check_finds_what_is_wrong_with_known_defects_before_a_search(part, fault):
    add_known(part, "bottle")
    spoil, (severity, where, text) = FAULTS[fault]
    spoil(part.root / "bottle" / "validation")
    assert text in problems(check(part.root, splits=("train",)))[severity, where]


def test_good_validation_images_beside_known_defects_are_used_or_said_to_be_ignored(part, tmp_path):
    add_known(part, "bottle")
    for index in range(2):
        part.image(f"bottle/validation/good/{index}.png")
    split = split_good_images(part.root, "bottle", seed=5)
    assert {path.parent.parent.name for path in split.validation_paths} == {"validation"}
    assert len(KnownDefectFiles.find(part.root, "bottle")) == 3
    own = TREES["folder"](tmp_path / "own")
    own.image("validation/good/0.png")
    assert "is ignored: good images" in problems(check(own.root))["warning", "validation/good"]
