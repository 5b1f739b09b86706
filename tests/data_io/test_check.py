from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from data_io.check import check, format_report


def only(report):
    (problem,) = report.problems
    return problem


def test_check_sound_root_is_ok_and_counted(root):
    report = check(root)
    assert report.ok and report.problems == []
    rows = {(row.split, row.defect_type): row for row in report.summary.itertuples()}
    assert rows["train", "good"].images == 6 and rows["train", "good"].sizes == "24×20"
    assert (rows["test", "crack"].images, rows["test", "crack"].masks) == (2, 2)
    assert rows["test", "crack"].sizes == "24 × 20–21" and rows["test", "crack"].modes == "RGB"


def test_check_demo_and_its_report_end_with_ready(demo):
    text = format_report(check(demo))
    assert "missing_tooth" in text and text.endswith("no errors, no warnings: ready for a search")


def test_check_finds_every_problem_at_once_each_with_its_path(root):
    part = root / "part"
    (part / "train" / "good" / "1.png").write_bytes((part / "train" / "good" / "1.png").read_bytes()[:300])
    (part / "train" / "good" / "notes.txt").write_text("x")
    shutil.copy(part / "train" / "good" / "0.png", part / "test" / "good" / "copy.png")
    (part / "ground_truth" / "crack" / "0_mask.png").unlink()
    Image.fromarray(np.full((3, 3), 255, np.uint8)).save(part / "ground_truth" / "crack" / "1_mask.png")
    Image.fromarray(np.full((3, 3), 255, np.uint8)).save(part / "ground_truth" / "crack" / "7_mask.png")
    (part / "test" / "dent").mkdir()
    (part / "test" / "crack" / "2.png").write_bytes(b"")
    (root / "second" / "test" / "good").mkdir(parents=True)
    (root / "docs").mkdir()
    report = check(root)
    assert not report.ok
    found = {
        (problem.severity, problem.path.relative_to(root).as_posix()): problem.message for problem in report.problems
    }
    assert set(found) == {
        ("error", "part/train/good/1.png"),
        ("warning", "part/train/good/notes.txt"),
        ("error", "part/test/good/copy.png"),
        ("error", "part/test/crack/0.png"),
        ("error", "part/ground_truth/crack/1_mask.png"),
        ("error", "part/ground_truth/crack/7_mask.png"),
        ("error", "part/test/dent"),
        ("error", "part/test/crack/2.png"),
        ("error", "second/train/good"),
        ("error", "second/test/good"),
        ("warning", "docs"),
    }
    assert "truncated" in found["error", "part/train/good/1.png"]
    assert "same image as" in found["error", "part/test/good/copy.png"]
    assert "ground_truth/crack/0_mask.png" in found["error", "part/test/crack/0.png"]
    assert "3×3" in found["error", "part/ground_truth/crack/1_mask.png"]
    text = format_report(report)
    assert all(str(problem) in text for problem in report.problems)
    assert "not usable" in text.splitlines()[-1]


def test_check_of_train_alone_still_sees_what_names_and_lengths_tell(root):
    part = root / "part"
    (part / "ground_truth" / "crack" / "0_mask.png").unlink()
    (part / "test" / "good" / "0.png").write_bytes(b"")
    (part / "test" / "good" / "1.png").write_bytes(b"no image")  # can be known by opening it only
    report = check(root, splits=("train",))
    assert {problem.path.name for problem in report.problems} == {"0.png"}
    assert len(report.errors) == 2
    sizes = report.summary.set_index(["split", "defect_type"])["sizes"]
    assert sizes["train", "good"] == "24×20" and sizes["test", "crack"] == ""


def test_check_masks_folder_without_images_is_an_error(root):
    shutil.rmtree(root / "part" / "test" / "crack")
    problem = only(check(root))
    assert problem.severity == "error" and problem.path == root / "part" / "ground_truth" / "crack"


def test_check_blank_mask_is_a_warning(root):
    Image.fromarray(np.zeros((20, 24), np.uint8)).save(root / "part" / "ground_truth" / "crack" / "0_mask.png")
    problem = only(check(root))
    assert problem.severity == "warning" and "no pixel" in problem.message


def test_check_without_test_folder_is_a_warning(root):
    shutil.rmtree(root / "part" / "test")
    shutil.rmtree(root / "part" / "ground_truth")
    assert check(root).ok and only(check(root)).severity == "warning"


def test_check_too_few_good_images_is_an_error(root):
    for index in range(3):
        (root / "part" / "train" / "good" / f"{index}.png").unlink()
    assert "3 images; at least 4" in only(check(root)).message


def test_check_chosen_categories_looks_at_no_other(root):
    (root / "second" / "test").mkdir(parents=True)
    assert check(root, categories=["part"]).ok
    assert not check(root).ok


@pytest.mark.parametrize(("where", "text"), [("", "no category in it"), ("none", "no such folder")])
def test_check_of_no_dataset_is_one_error(tmp_path, where, text):
    problem = only(check(tmp_path / where))
    assert problem.severity == "error" and text in problem.message


def test_check_unknown_category_names_the_nearest(root):
    assert "Did you mean 'part'" in only(check(root, categories=["prat"])).message


def test_check_real_root_is_ok(real_root):
    report = check(real_root, categories=["bottle"], splits=("train",))
    assert report.ok and report.summary["images"].sum() == 292
