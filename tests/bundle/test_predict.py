"""Prediction over folders: what is written, what is skipped, what is refused, and what a kill leaves."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msad.bundle import predict as module
from msad.bundle.predict import format_outcome, predict_folder
from msad.data_io.check import check
from msad.errors import ConfigError, Interrupted, ResourceError

REPOSITORY = Path(__file__).parents[2]


def read_scores(out):
    return list(csv.DictReader((out / "scores.csv").open()))


def write_times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}


@pytest.fixture
def folder(demo, category):
    return demo / category / "test"


@pytest.fixture
def images(folder, tmp_path):
    """A folder of our own with six images to change."""
    (tmp_path / "images").mkdir()
    for number, path in enumerate(sorted(folder.rglob("*.png"))[:6]):
        (tmp_path / "images" / f"{number}.png").write_bytes(path.read_bytes())
    return tmp_path / "images"


def test_predict_folder_writes_a_row_and_a_heatmap_per_image(bundle, folder, tmp_path):
    out = tmp_path / "out"
    result = predict_folder(bundle, [folder], out, batch_size=5)
    files = sorted(folder.rglob("*.png"))
    rows = read_scores(out)
    assert [row["path"] for row in rows] == [str(path) for path in files]
    assert result.scored == len(files) and not result.skipped and not result.earlier
    assert result.anomalous == sum(row["verdict"] == "anomalous" for row in rows)
    for row, path in zip(rows, files, strict=True):
        assert (float(row["score"]) > float(row["threshold"])) == (row["verdict"] == "anomalous")
        assert float(row["score"]) == pytest.approx(bundle.predict(path).score, rel=1e-4)
        assert float(row["threshold"]) == bundle.threshold
        # Files of one name in two folders keep a heatmap each, at the image's own size.
        assert row["heatmap"] == f"heatmaps/{path.relative_to(folder)}" and row["map"] == ""
        with Image.open(out / row["heatmap"]) as heatmap, Image.open(path) as image:
            assert heatmap.size == image.size
    assert {path.name for path in out.iterdir()} == {
        ".lock", ".resume.csv", "prediction.json", "scores.csv", "heatmaps",
        ".records.jsonl", "regions.csv", "regions.json", "statistics.csv",
    }  # fmt: skip


def test_predict_folder_killed_in_mid_run_is_continued_without_scoring_anything_twice(bundle, images, tmp_path):
    sources = sorted(images.iterdir())
    for number in range(300):
        (images / f"more-{number:03}.png").symlink_to(sources[number % len(sources)])
    (images / "broken.png").write_bytes(b"nothing")
    model, out = bundle.save(tmp_path / "model"), tmp_path / "out"
    command = [sys.executable, "-m", "msad", "predict", model, images, "--out", out, "--batch-size", "4"]
    process = subprocess.Popen([*map(str, command), "--device", "cpu"], cwd=REPOSITORY, start_new_session=True)
    while process.poll() is None and (not (out / "scores.csv").exists() or len(read_scores(out)) < 20):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was done before it could be killed"

    killed = read_scores(out)
    assert 20 <= len(killed) < 306
    for row in killed:  # a row means that its files are whole
        with Image.open(out / row["heatmap"]) as heatmap:
            heatmap.load()
    assert len(write_times(out)) <= len(killed) + 4, "more than one batch was lost"
    with (out / "scores.csv").open("a") as file:
        file.write(f'"{images}/more-299.png",12.5,3')  # what a kill in mid-line leaves
    before = write_times(out)

    result = predict_folder(bundle, [images], out, batch_size=4)
    rows = read_scores(out)
    assert rows[: len(killed)] == killed
    assert sorted(row["path"] for row in rows) == sorted(
        str(path) for path in images.iterdir() if path.stem != "broken"
    )
    assert (result.scored, result.earlier, list(result.skipped)) == (306, len(killed), [str(images / "broken.png")])
    assert "broken.png" in (out / "skipped.csv").read_text()
    after = write_times(out)
    assert all(after[out / row["heatmap"]] == before[out / row["heatmap"]] for row in killed)
    assert len(after) == 306 and not list(out.rglob(".part-*"))


def test_predict_folder_again_scores_only_what_is_new_or_changed(bundle, images, folder, tmp_path):
    predict_folder(bundle, [images], tmp_path / "out")
    first = {row["path"]: row for row in read_scores(tmp_path / "out")}
    other = sorted(folder.rglob("*.png"))[-1].read_bytes()
    (images / "3.png").write_bytes(other)
    (images / "new.png").write_bytes(other)
    (images / "5.png").write_bytes(other[:100])
    result = predict_folder(bundle, [images], tmp_path / "out")
    assert (result.scored, result.earlier, list(result.skipped)) == (6, 4, [str(images / "5.png")])
    rows = {row["path"]: row for row in read_scores(tmp_path / "out")}
    assert [name for name in first if rows.get(name) == first[name]] == [str(images / f"{n}.png") for n in (0, 1, 2, 4)]
    assert rows[str(images / "3.png")]["score"] == rows[str(images / "new.png")]["score"]
    assert rows[str(images / "3.png")]["heatmap"] == "heatmaps/3.png"
    assert str(images / "5.png") not in rows


def test_predict_folder_skipped_images_are_listed_and_tried_again(bundle, images, tmp_path):
    whole = (images / "1.png").read_bytes()
    (images / "1.png").write_bytes(whole[:100])
    for _ in range(2):
        result = predict_folder(bundle, [images], tmp_path / "out")
        assert list(result.skipped) == [str(images / "1.png")] and "damaged" in result.skipped[str(images / "1.png")]
        [row] = csv.DictReader((tmp_path / "out" / "skipped.csv").open())
        assert row == {"path": str(images / "1.png"), "reason": result.skipped[str(images / "1.png")]}
    (images / "1.png").write_bytes(whole)
    assert predict_folder(bundle, [images], tmp_path / "out").scored == 6
    assert not (tmp_path / "out" / "skipped.csv").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threshold": 99.0}, ["threshold (then", "now 99.0"]),
        ({"maps": "npy"}, ["maps (then none, now npy)"]),
        ({"heatmaps": False}, ["heatmaps (then True, now False)"]),
        ({"pixel_threshold": 7.0}, ["pixel_threshold (then", "now 7.0"]),
        ({"smallest_area": 9}, ["smallest_area (then 1, now 9)"]),
    ],
)
def test_predict_folder_other_settings_are_refused_and_overwrite_replaces(bundle, images, tmp_path, options, words):
    predict_folder(bundle, [images], tmp_path)
    before = (tmp_path / "scores.csv").read_text()
    with pytest.raises(ConfigError) as refused:
        predict_folder(bundle, [images], tmp_path, **options)
    assert all(word in str(refused.value) for word in [*words, "another --out", "--overwrite", str(tmp_path)])
    assert (tmp_path / "scores.csv").read_text() == before
    assert predict_folder(bundle, [images], tmp_path, **options, overwrite=True).earlier == 0
    assert len(read_scores(tmp_path)) == 6
    assert len(write_times(tmp_path / "heatmaps")) == (0 if "heatmaps" in options else 6)


def test_predict_folder_another_model_is_refused_and_the_same_one_from_disk_is_not(
    bundle, make_bundle, images, tmp_path
):
    predict_folder(bundle, [images], tmp_path / "out")
    with pytest.raises(ConfigError, match="the model"):
        predict_folder(make_bundle(smoothing=1.5), [images], tmp_path / "out")
    loaded = type(bundle).load(bundle.save(tmp_path / "model"), device="cpu")
    assert predict_folder(loaded, [images], tmp_path / "out").earlier == 6


def test_predict_folder_foreign_table_is_refused(bundle, images, tmp_path):
    (tmp_path / "scores.csv").write_text("part,grade\n1,2\n")
    with pytest.raises(ConfigError, match=r"no prediction\.json.*--overwrite"):
        predict_folder(bundle, [images], tmp_path)
    (tmp_path / "prediction.json").write_text("{")
    with pytest.raises(ConfigError, match=r"damaged.*--overwrite"):
        predict_folder(bundle, [images], tmp_path)


def test_predict_folder_two_at_once_in_one_folder_are_refused(bundle, images, tmp_path, monkeypatch):
    def meanwhile(*_):
        with pytest.raises(ResourceError, match="another prediction"):
            predict_folder(bundle, [images], tmp_path)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "to_tensor", meanwhile)
    with pytest.raises(Interrupted, match="the same command continues"):
        predict_folder(bundle, [images], tmp_path)
    monkeypatch.undo()
    assert predict_folder(bundle, [images], tmp_path).scored == 6


def test_predict_folder_large_images_come_in_smaller_batches_with_the_same_results(
    bundle, images, tmp_path, monkeypatch
):
    predict_folder(bundle, [images], tmp_path / "whole", batch_size=6, heatmaps=False)
    sizes = []
    real = type(bundle).score_batch
    monkeypatch.setattr(type(bundle), "score_batch", lambda self, x: sizes.append(len(x)) or real(self, x))
    monkeypatch.setattr(module, "BATCH_PIXELS", 2 * 64 * 64)
    predict_folder(bundle, [images], tmp_path / "parts", batch_size=6, heatmaps=False)
    assert sizes == [2, 2, 2]
    scores = [[float(row["score"]) for row in read_scores(tmp_path / name)] for name in ("whole", "parts")]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)


def test_predict_folder_threshold_replaces_the_bundles_own(bundle, folder, tmp_path):
    result = predict_folder(bundle, [folder], tmp_path, threshold=-1e9, heatmaps=False)
    assert result.anomalous == result.scored > 0
    assert not (tmp_path / "heatmaps").exists()
    with pytest.raises(ConfigError, match="finite"):
        predict_folder(bundle, [folder], tmp_path, threshold=float("nan"))
    with pytest.raises(ConfigError, match="none, png, npy"):
        predict_folder(bundle, [folder], tmp_path, maps="jpg")


def test_predict_folder_maps_have_the_images_size_and_the_scale_that_is_written(bundle, images, tmp_path):
    path = images / "0.png"
    Image.open(path).resize((90, 41)).save(path)
    for kind in ("npy", "png"):
        predict_folder(bundle, [path], tmp_path / kind, maps=kind, heatmaps=False)
    exact = np.load(tmp_path / "npy" / "maps" / "0.npy", allow_pickle=False)
    assert exact.shape == (41, 90) and exact.dtype == np.float32
    assert np.array_equal(exact, bundle.predict(path).anomaly_map)
    grey = np.asarray(Image.open(tmp_path / "png" / "maps" / "0.png"))
    scale = json.loads((tmp_path / "png" / "prediction.json").read_text())["map_scale"]
    assert grey.dtype == np.uint16 and 0 < grey.max() < 65535
    assert np.abs(grey * scale - exact.clip(0)).max() <= 0.5001 * scale


def test_predict_folder_out_inside_the_input_and_hidden_files_are_not_read(bundle, folder, tmp_path):
    Image.open(next(folder.rglob("*.png"))).save(tmp_path / "part.png")
    (tmp_path / "._part.png").write_bytes(b"what macOS puts beside a file")
    for earlier in (0, 1):
        result = predict_folder(bundle, [tmp_path], tmp_path / "out")
        assert (result.scored, result.earlier, result.skipped) == (1, earlier, {})


def test_predict_folder_masks_among_images_are_left_out_and_named(bundle, images, tmp_path):
    for number in range(2):  # as KolektorSDD2 has them
        shutil.copy(images / f"{number}.png", images / f"{number}_GT.png")
    result = predict_folder(bundle, [images], tmp_path / "out", heatmaps=False)
    assert result.scored == 6 and result.masks == [str(images / "0_GT.png"), str(images / "1_GT.png")]
    assert [Path(row["path"]).stem for row in read_scores(tmp_path / "out")] == [*"012345"]
    said = format_outcome(result, tmp_path / "out").splitlines()[-1]
    assert said.startswith(f"2 left out that look like ground truth, {images / '0_GT.png'} the first")
    assert predict_folder(bundle, [images / "1_GT.png"], tmp_path / "named", heatmaps=False).scored == 1
    (tmp_path / "all" / "ground_truth").mkdir(parents=True)
    shutil.copy(images / "0.png", tmp_path / "all" / "ground_truth")
    with pytest.raises(ConfigError, match=r"nothing but ground truth, .*ground_truth the first"):
        predict_folder(bundle, [tmp_path / "all"], tmp_path / "none")
    assert predict_folder(bundle, [tmp_path / "all" / "ground_truth"], tmp_path / "none", heatmaps=False).scored == 1


def test_predict_folder_images_of_one_name_keep_a_heatmap_each(bundle, images, tmp_path):
    image = Image.open(images / "0.png").convert("RGB")
    image.save(images / "0.bmp")
    (tmp_path / "other").mkdir()
    image.save(tmp_path / "other" / "0.png")
    out = tmp_path / "out"
    predict_folder(bundle, [images / "0.png", images / "0.bmp"], out)
    predict_folder(bundle, [tmp_path / "other"], out)  # a later run has another folder in common
    assert [row["heatmap"] for row in read_scores(out)] == [
        "heatmaps/0.png",
        "heatmaps/0.bmp.png",
        "heatmaps/0.png.png",
    ]


def test_predict_folder_nothing_to_do_is_an_error_that_names_it(bundle, tmp_path):
    with pytest.raises(ConfigError, match=r"no such file or folder: .*nowhere"):
        predict_folder(bundle, [tmp_path / "nowhere"], tmp_path / "out")
    with pytest.raises(ConfigError, match="no image"):
        predict_folder(bundle, [tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_predict_folder_out_that_is_a_file_is_a_resource_error(bundle, folder, tmp_path):
    (tmp_path / "out").write_text("taken")
    with pytest.raises(ResourceError, match="out"):
        predict_folder(bundle, [folder], tmp_path / "out")


def test_predict_folder_paths_relative_and_absolute_give_one_row_per_image(bundle, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out, relative = Path("out"), Path("images")
    assert predict_folder(bundle, [relative, images / "0.png", Path("./images/../images")], out).scored == 6
    first = read_scores(out)
    again = predict_folder(bundle, [images], out)
    assert again.earlier == again.scored == 6 and read_scores(out) == first
    assert [row["path"] for row in first] == [f"images/{number}.png" for number in range(6)]
    monkeypatch.chdir(images)
    assert predict_folder(bundle, [Path()], tmp_path / "out").earlier == 6
    # The same words for other files, in another folder: they are other images.
    shutil.copytree(images, tmp_path / "elsewhere" / "images")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert predict_folder(bundle, [relative], tmp_path / "out").earlier == 0
    assert len({row["path"] for row in read_scores(tmp_path / "out")}) == 12


def test_scores_show_nothing_that_resuming_alone_needs_and_a_table_of_before_is_continued(bundle, images, tmp_path):
    out = tmp_path / "out"
    predict_folder(bundle, [images], out)
    rows = read_scores(out)
    assert list(rows[0]) == ["path", "score", "threshold", "verdict", "heatmap", "map"]
    (out / ".resume.csv").unlink()
    with (out / "scores.csv").open("w", newline="") as file:  # as it was written before
        table = csv.writer(file)
        table.writerow([*rows[0], "bytes", "modified_ns"])
        for row in rows:
            status = Path(row["path"]).stat()
            table.writerow([*row.values(), status.st_size, status.st_mtime_ns])
    assert predict_folder(bundle, [images], out).earlier == 6 and read_scores(out) == rows
    (out / ".resume.csv").unlink()  # nothing is known of the files any more: they are scored again
    assert predict_folder(bundle, [images], out).earlier == 0 and read_scores(out) == rows


def test_predict_folder_follows_linked_folders_and_no_loop(bundle, images, folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (images / "5.png").rename(elsewhere / "5.png")
    (images / "linked").symlink_to(elsewhere, target_is_directory=True)
    (elsewhere / "back").symlink_to(images, target_is_directory=True)
    (images / "zz").mkdir()
    (images / "4.png").rename(images / "zz" / "4.png")
    (images / "again").symlink_to(images / "zz", target_is_directory=True)
    result = predict_folder(bundle, [images], tmp_path / "out", heatmaps=False)
    paths = [row["path"] for row in read_scores(tmp_path / "out")]
    assert result.scored == 6 and not result.skipped
    assert paths[-2:] == [str(images / "zz" / "4.png"), str(images / "linked" / "5.png")]


def test_predict_folder_reads_or_lists_every_file(bundle, images, tmp_path):
    image = Image.open(images / "0.png").convert("RGB")
    image.save(images / "a.webp", lossless=True)
    image.save(images / "b.jfif", "JPEG")
    image.save(images / "c.gif")
    (images / "d.heic").write_bytes(b"x")
    (images / "noname").write_bytes(b"x")
    (images / "gone.lnk").symlink_to(images / "nowhere")
    for name in ("notes.txt", "Thumbs.db", ".DS_Store"):
        (images / name).write_text("x")
    result = predict_folder(bundle, [images], tmp_path / "out", heatmaps=False)
    assert result.scored == 8
    assert {Path(path).name: reason.split(";")[0] for path, reason in result.skipped.items()} == {
        **dict.fromkeys(("c.gif", "d.heic", "noname"), "not an image file by its name (png, jpg, bmp, tif, webp)"),
        "gone.lnk": "a link that leads nowhere",
    }
    listed = [row["path"] for row in csv.DictReader((tmp_path / "out" / "skipped.csv").open())]
    assert listed == list(result.skipped)
    assert result.others == [str(images / "Thumbs.db"), str(images / "notes.txt")]
    assert "2 other file(s) are no images, " in format_outcome(result, tmp_path / "out")


def test_predict_folder_of_files_of_other_kinds_alone_is_refused_with_them(bundle, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.gif").write_bytes(b"GIF89a")
    with pytest.raises(ConfigError, match=r"but 1 that:\n  .*a\.gif: not an image file by its name"):
        predict_folder(bundle, [tmp_path / "images"], tmp_path / "out")


def test_predict_folder_says_what_is_clipped_and_what_pages_are_not_read(bundle, tmp_path):
    (tmp_path / "images").mkdir()
    wide = [Image.fromarray(np.full((40, 40), value, np.uint16)) for value in (900, 1500)]
    wide[0].save(tmp_path / "images" / "a.png")
    wide[1].save(tmp_path / "images" / "b.tif", save_all=True, append_images=[wide[0].copy()])
    ten = replace(bundle, job=replace(bundle.job, bit_depth=10))
    result = predict_folder(ten, [tmp_path / "images"], tmp_path / "ten", heatmaps=False)
    assert result.scored == 2 and len(result.remarks) == 2
    assert "1 image(s) have values up to 1500, above those of the 10 bits" in result.remarks[0]
    assert "b.tif the first, 1,600 pixels" in result.remarks[0]
    assert "1 file(s) have more than one page, of which the first is read" in result.remarks[1]
    assert "note: 1 image(s) have values up to 1500" in format_outcome(result, tmp_path / "ten")
    [dark, _] = predict_folder(bundle, [tmp_path / "images"], tmp_path / "sixteen", heatmaps=False).remarks
    assert "no value above 1500, as of 12 bits; the model reads them as of 16" in dark
    with pytest.warns(UserWarning, match="image 0 the first"):
        ten.predict(np.full((40, 40), 1500, np.uint16))


def test_file_that_cannot_be_read_has_the_same_words_in_a_check_and_in_a_prediction(bundle, images, tmp_path):
    root, whole = tmp_path / "data", (images / "0.png").read_bytes()
    good = root / "part" / "train" / "good"
    shutil.copytree(images, good)
    broken = {"cut.png": whole[: len(whole) // 2], "empty.png": b"", "text.png": b"no image", "empty.jpg": b""}
    for name, content in broken.items():
        (good / name).write_bytes(content)
    (good / "gone.png").symlink_to(tmp_path / "nowhere")
    told = {str(problem.path): problem.message for problem in check(root, ("train",)).errors}
    skipped = predict_folder(bundle, [good], tmp_path / "out").skipped
    assert len(skipped) == 5 and skipped == {path: told[path] for path in skipped}
