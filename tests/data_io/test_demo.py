from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from msad.data_io import demo as module
from msad.data_io.check import check
from msad.data_io.decode import decode, decode_mask
from msad.data_io.demo import CATEGORIES, OBJECTS, TEXTURES, defect_types, make_demo
from msad.data_io.demo_defects import hole, scratch, stain
from msad.data_io.demo_objects import draw_gear, draw_tablets, random_pose
from msad.data_io.errors import DataError

SMALL = {"image_size": 40, "train": 4, "good": 1, "per_defect": 2}


def digests(root):
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*.png"))
    }


def test_make_demo_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    first, second, other = (
        digests(make_demo(tmp_path / name, seed, **SMALL)) for name, seed in [("a", 0), ("b", 0), ("c", 1)]
    )
    assert first == second
    images = [name for name in first if "ground_truth" not in name]
    assert len(images) == len(set(map(first.get, images)))
    assert all(first[name] != other[name] for name in images)


def test_make_demo_has_the_promised_categories_and_passes_the_check(demo):
    assert len(CATEGORIES) >= 4 and set(TEXTURES) == {"brick", "grass", "gravel"} and OBJECTS
    assert all(len(defect_types(category)) >= 3 for category in CATEGORIES)
    report = check(demo)
    assert report.problems == []
    counts = report.summary.groupby("category")["images"].sum()
    assert counts["brick"] == 8 + 3 + 3 * 3 and counts["gear"] == 8 + 3 + 4 * 3


def test_make_demo_textures_are_grey_and_objects_coloured(demo):
    for category in CATEGORIES:
        image = decode(demo / category / "train" / "good" / "000.png").astype(int)
        assert (np.ptp(image, axis=2).max() == 0) == (category in TEXTURES)


def test_make_demo_masks_mark_something_small(demo):
    for path in demo.glob("*/ground_truth/*/*.png"):
        assert 0 < decode_mask(path).mean() < 0.2, path


def test_make_demo_again_leaves_a_finished_one_as_it_is(tmp_path):
    root = make_demo(tmp_path, **SMALL)
    path = root / "gear" / "train" / "good" / "000.png"
    before = path.stat().st_mtime_ns
    assert make_demo(tmp_path, **SMALL) == root
    assert path.stat().st_mtime_ns == before


def test_make_demo_over_an_interrupted_or_another_demo_makes_it_anew(tmp_path):
    root = make_demo(tmp_path / "a", **SMALL)
    whole = digests(root)
    (root / "gear" / "train" / "good" / "000.png").unlink()
    (root / module._MARKER).write_text("{}")
    assert digests(make_demo(root, **SMALL)) == whole
    make_demo(root, **{**SMALL, "train": 5})
    assert len(list((root / "gear" / "train" / "good").iterdir())) == 5
    assert json.loads((root / module._MARKER).read_text())["train"] == 5


def test_make_demo_refuses_a_folder_that_is_not_its_own(tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(DataError, match="holds something that is no demo dataset"):
        make_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("options", [{"image_size": 8}, {"train": 0}, {"per_defect": 0}, {"seed": -1}])
def test_make_demo_numbers_out_of_range_are_refused(tmp_path, options):
    with pytest.raises(DataError, match="cannot be made"):
        make_demo(tmp_path / "demo", **options)
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("defect", [scratch, stain, hole])
@pytest.mark.parametrize("severity", [0.0, 0.5, 1.0])
def test_defect_changes_its_mask_and_nothing_else(defect, severity):
    for seed in range(10):
        rng = np.random.default_rng(seed)
        good = rng.uniform(0.3, 0.7, (96, 96, 3)).astype(np.float32)
        picture, mask = defect(good, np.ones((96, 96), np.float32), rng, severity)
        changed = np.any(picture != good, axis=2)
        assert mask.any() and not changed[~mask].any()
        assert changed[mask].mean() > 0.99
        assert picture.min() >= 0 and picture.max() <= 1


@pytest.mark.parametrize("defect", [scratch, stain, hole])
def test_defect_grows_plainer_with_severity(defect):
    change = []
    for severity in (0.0, 0.5, 1.0):
        total = 0.0
        for seed in range(10):
            good = np.full((96, 96, 3), 0.5, np.float32)
            picture, _ = defect(good, np.ones((96, 96), np.float32), np.random.default_rng(seed), severity)
            total += np.abs(picture - good).sum()
        change.append(total)
    assert change[0] < change[1] < change[2]


@pytest.mark.parametrize("draw", [draw_gear, draw_tablets])
def test_object_same_pose_is_drawn_alike_and_loses_a_part_only(draw):
    for seed in range(5):
        pose = random_pose(np.random.default_rng(seed))
        whole, body = draw(pose, 96, 0.0)
        assert np.array_equal(whole, draw(pose, 96, 0.0)[0])
        less, more = (np.abs(draw(pose, 96, lost)[0] - whole).max(axis=2) > 1 / 255 for lost in (0.3, 1.0))
        assert 0 < less.mean() < more.mean() < 0.05
        assert 0.2 < body.mean() < 0.8


def test_objects_vary_from_one_to_the_next(demo):
    for category in OBJECTS:
        stack = np.stack([decode(path) for path in sorted((demo / category / "train" / "good").iterdir())])
        assert stack.astype(float).std(axis=0).mean() > 2
