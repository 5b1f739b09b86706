"""`msad data ...`: exit codes, what is printed, and what is left on the disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from msad.data_io.array_cache import cached_arrays


def test_data_clean_says_what_it_removed_and_what_stays(msad, tmp_path, monkeypatch):
    monkeypatch.setenv("MSAD_CACHE", str(tmp_path))
    for key in "ab":
        cached_arrays(key, lambda: {"a": np.zeros(1000)})
    assert msad("data", "clean")[:2] == (0, f"{tmp_path}: 0 removed (0.0 GB), 2 kept (0.0 GB)\n")
    code, out, _ = msad("data", "clean", "--unused-for", 0, "--json", "-")
    assert code == 0 and json.loads(out) == {
        "cache": str(tmp_path), "removed": 2, "removed_bytes": 2 * 8128, "kept": 0, "kept_bytes": 0
    }  # fmt: skip
    assert msad("data", "clean", "--unused-for", -1)[0] == 2


def test_data_check_of_a_sound_dataset_is_0_and_of_a_broken_one_1(msad, demo, category, tmp_path):
    code, out, _ = msad("data", "check", demo)
    assert code == 0 and category in out
    shutil.copytree(demo / category, tmp_path / "broken" / category)
    image = min((tmp_path / "broken" / category / "train" / "good").iterdir())
    image.write_bytes(image.read_bytes()[:200])
    mask = min((tmp_path / "broken" / category / "ground_truth").rglob("*.png"))
    mask.unlink()
    code, out, _ = msad("data", "check", tmp_path / "broken")
    assert code == 1 and image.name in out and mask.name.removesuffix("_mask.png") in out


def test_data_check_as_json_is_all_that_standard_output_holds(msad, demo, category, tmp_path):
    code, out, _ = msad("data", "check", demo, "--json", "-")
    report = json.loads(out)
    assert code == 0 and report["ok"] and report["problems"] == []
    assert {"category": category, "split": "train", "images": 16}.items() <= report["summary"][0].items()
    code, out, _ = msad("data", "check", tmp_path / "nowhere", "--json", tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert code == 1 and not report["ok"] and "not usable" in out
    assert report["problems"][0]["severity"] == "error" and "nowhere" in report["problems"][0]["path"]


def test_data_suspects_ranks_good_images_and_leaves_a_table_and_pictures(msad, demo, category, tmp_path):
    settings = "--categories", category, "--image-size", 64, "--top", 3, "--out", tmp_path / "out"
    words = "data", "suspects", demo, *settings
    code, out, _ = msad(*words)
    assert code == 0 and f"{category}: 16 good images, none of them stands out" in out
    table = pd.read_csv(tmp_path / "out" / "suspects.csv")
    assert table["rank"].tolist() == list(range(1, 17)) and table["deviations"].is_monotonic_decreasing
    listed = [line for line in out.splitlines() if "train/good" in line]
    assert len(listed) == 3 and Path(table["path"][0]).name in listed[0]
    with Image.open(tmp_path / "out" / f"{category}.png") as picture:
        assert picture.width > 600 and np.ptp(np.asarray(picture.convert("L"))) > 100
    code, out, _ = msad(*words, "--json", "-")
    assert code == 0 and [row["path"] for row in json.loads(out)] == table["path"].tolist()
    assert msad("data", "suspects", demo, "--categories", "nothing", "--out", tmp_path / "none")[0] == 2
    assert not (tmp_path / "none").exists()


def test_data_check_of_a_folder_that_is_not_there_is_1_and_names_it(msad, tmp_path):
    code, out, _ = msad("data", "check", tmp_path / "nowhere")
    assert code == 1 and "nowhere" in out


def test_data_demo_makes_a_dataset_that_passes_its_check_and_spares_other_folders(msad, tmp_path):
    code, out, _ = msad("data", "demo", tmp_path / "demo", "--seed", 3)
    assert code == 0 and str(tmp_path / "demo") in out
    assert msad("data", "check", tmp_path / "demo")[0] == 0
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    code, _, err = msad("data", "demo", tmp_path / "other")
    assert code == 2 and str(tmp_path / "other") in err
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.txt"]
