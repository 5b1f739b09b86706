from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from msad.data_io.check import check, format_report
from msad.data_io.splits import split_good_images
from msad.data_io.test_split import TestSplit
from tests.data_io.conftest import save_noise


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
    Image.fromarray(np.full((3, 3), 255, np.uint8)).save(part / "ground_truth" / "crack" / "7_GT.png")
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
        ("warning", "part/test/crack/0.png"),
        ("error", "part/ground_truth/crack/1_mask.png"),
        ("warning", "part/ground_truth/crack"),
        ("error", "part/test/dent"),
        ("error", "part/test/crack/2.png"),
        ("error", "second/train/good"),
        ("error", "second/test/good"),
        ("warning", "docs"),
    }
    assert "truncated" in found["error", "part/train/good/1.png"]
    assert "same image as" in found["error", "part/test/good/copy.png"]
    assert "ground_truth/crack/0_mask.png" in found["warning", "part/test/crack/0.png"]
    assert "7_GT.png the first; a mask is called NAME_mask.png" in found["warning", "part/ground_truth/crack"]
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
    assert len(report.errors) == 1
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


def test_check_without_masks_is_one_warning_and_no_error(root):
    shutil.rmtree(root / "part" / "ground_truth")
    assert check(root).ok and "cannot be measured" in only(check(root)).message


def test_check_of_a_kind_of_defect_without_masks_is_one_warning(root):
    for index in range(3):
        save_noise(root / "part" / "test" / "dent" / f"{index}.png", np.random.default_rng(9 + index))
    assert check(root).ok and "without 3 of the 3 images of dent" in only(check(root)).message


def test_check_names_masks_beside_the_folders_of_types_and_in_a_folder_of_another_name(root):
    truth = root / "part" / "ground_truth"
    shutil.move(truth / "crack" / "0_mask.png", truth / "0_mask.png")
    (root / "part" / "ground-truth").mkdir()
    found = {problem.path.name: problem.message for problem in check(root).problems}
    assert set(found) == {"ground_truth", "ground-truth", "0.png"}
    assert "0_mask.png the first; put them into" in found["ground_truth"]


def test_check_uses_images_in_folders_below_and_says_so(root):
    good = root / "part" / "train" / "good"
    for index in range(3):
        save_noise(good / "camA" / f"{index}.png", np.random.default_rng(50 + index))
    (good / "camA" / "turn.gif").write_bytes(b"GIF89a")
    (root / "linked").mkdir()
    save_noise(root / "linked" / "9.png", np.random.default_rng(70))
    (good / "camB").symlink_to(root / "linked", target_is_directory=True)
    (root / "linked" / "back").symlink_to(good, target_is_directory=True)  # a loop
    report = check(root, categories=["part"])
    assert report.ok and report.summary["images"][0] == 10
    assert [problem.message for problem in report.problems] == [
        "is no image file (png, jpg, bmp, tif, webp) and is ignored",
        "4 of its images lie in folders below it (camA, camB)",
    ]
    assert len(split_good_images(root, "part", 0).train_paths) == 5


def test_check_refuses_a_folder_of_defective_images_among_the_good(root):
    save_noise(root / "part" / "train" / "good" / "NG" / "0.png", np.random.default_rng(50))
    assert "holds no good images; move it out" in check(root).errors[0].message


def test_check_masks_in_folders_below_belong_to_images_in_folders_below(root):
    for kind in ("test/crack", "ground_truth/crack"):
        folder = root / "part" / kind
        (folder / "camA").mkdir()
        for path in folder.glob("*.png"):
            path.rename(folder / "camA" / path.name)
    assert "lie in folders below it" in only(check(root)).message
    assert all(mask.any() for mask in [*TestSplit(root, "part").masks()][2:])


@pytest.mark.parametrize("suffix", ["jfif", "webp", "JPE"])
def test_check_reads_files_of_every_suffix_of_an_image(root, suffix):
    image = Image.fromarray(np.random.default_rng(5).integers(0, 256, (20, 24, 3), np.uint8))
    image.save(root / "part" / "train" / "good" / f"x.{suffix}", "WEBP" if suffix == "webp" else "JPEG")
    report = check(root)
    assert report.problems == [] and report.summary["images"][0] == 7


def test_check_of_identical_training_images_is_a_warning(root):
    good = root / "part" / "train" / "good"
    for index in range(1, 6):
        shutil.copy(good / "0.png", good / f"{index}.png")
    assert "all 6 images are the same" in only(check(root)).message


def test_check_of_many_copies_among_training_images_is_a_warning(root):
    good = root / "part" / "train" / "good"
    shutil.copy(good / "0.png", good / "7.png")
    message = only(check(root)).message
    assert "1 of 7 images are copies of others (7.png of 0.png the first)" in message


def test_check_names_the_bit_depth_and_what_is_above_it(root):
    part, rng = root / "part", np.random.default_rng(0)
    for path in [*(part / "train" / "good").iterdir(), *(part / "test").rglob("*.png")]:
        height, width = np.asarray(Image.open(path)).shape[:2]
        Image.fromarray(rng.integers(0, 3000, (height, width)).astype(np.uint16)).save(path)
    report = check(root)
    assert report.problems == [] and report.bit_depths == {"part": 12}
    assert "I;16, read as 12 bits" in format_report(report)
    Image.fromarray(np.full((20, 24), 5000, np.uint16)).save(part / "test" / "good" / "0.png")
    assert "1 image(s) have values up to 5000, above the 4095 of 12 bits, 0.png the first" in only(check(root)).message
    assert len(check(root, bit_depth=10).problems) == 2


def test_check_says_once_that_files_have_further_pages(root):
    for index in range(2):
        pages = [
            Image.fromarray(np.random.default_rng(20 + 2 * index + page).integers(0, 255, (20, 24), np.uint8))
            for page in range(2)
        ]
        path = root / "part" / "train" / "good" / f"p{index}.tif"
        pages[0].save(path, save_all=True, append_images=pages[1:])
    message = only(check(root)).message
    assert "2 file(s) have more than one page, p0.tif the first (2); only the first page is read" in message


def test_warnings_of_a_report_are_few_lines(root):
    part = root / "part"
    for number in range(12):
        (part / "train" / "good" / f"{number}.txt").write_text("x")
        (part / f"odd{number}").mkdir()
    shutil.rmtree(part / "ground_truth")
    lines = check(root).warnings(most=2)
    assert len(lines) == 3 and " and 11 more: is ignored" in lines[0] and "`msad data check" in lines[2]
