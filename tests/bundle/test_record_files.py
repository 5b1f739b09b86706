"""The regions of predicted images as files: what predict writes, COCO's form, and what a kill leaves."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from msad.bundle.predict import format_outcome, predict_folder
from msad.bundle.record_files import COLUMNS, run_lengths
from msad.errors import ConfigError
from msad.models.regions import find_regions, mask_of


@pytest.fixture
def folder(demo, category):
    return demo / category / "test"


@pytest.fixture
def images(folder, tmp_path):
    (tmp_path / "images").mkdir()
    for number, path in enumerate(sorted(folder.rglob("*.png"))[:6]):
        (tmp_path / "images" / f"{number}.png").write_bytes(path.read_bytes())
    return tmp_path / "images"


def rows(out):
    return list(csv.DictReader((out / "regions.csv").open()))


def unpacked(segmentation):
    """Read run lengths as COCO says: down the columns, outside and inside in turn, the first outside."""
    (height, width), counts = segmentation["size"], segmentation["counts"]
    assert sum(counts) == height * width and min(counts[1:], default=1) > 0
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts).reshape(width, height).T


@pytest.mark.parametrize("heatmaps", [True, False])
def test_predict_lists_the_regions_of_every_image(bundle, folder, tmp_path, heatmaps):
    result = predict_folder(bundle, [folder], tmp_path, heatmaps=heatmaps, batch_size=5)
    table, coco = rows(tmp_path), json.loads((tmp_path / "regions.json").read_text())
    assert tuple(table[0]) == COLUMNS and len(table) == result.regions == len(coco["annotations"]) > 0
    assert f"{result.regions} region(s)" in format_outcome(result, tmp_path)
    assert [one["file_name"] for one in coco["images"]] == [str(path) for path in sorted(folder.rglob("*.png"))]
    assert coco["info"]["pixel_threshold"] == bundle.pixel_threshold
    for image in coco["images"]:
        prediction = bundle.predict(image["file_name"])
        found = prediction.regions()
        listed = [row for row in table if row["path"] == image["file_name"]]
        annotated = [one for one in coco["annotations"] if one["image_id"] == image["id"]]
        assert (image["height"], image["width"]) == prediction.anomaly_map.shape
        assert [int(row["region"]) for row in listed] == [*range(1, len(found) + 1)]
        for region, row, one in zip(found, listed, annotated, strict=True):
            box = [region.x, region.y, region.width, region.height]
            assert [int(row[name]) for name in ("x", "y", "width", "height")] == box == one["bbox"]
            assert int(row["area"]) == region.area == one["area"] == unpacked(one["segmentation"]).sum()
            assert float(row["peak"]) == one["score"] == pytest.approx(region.peak, rel=1e-4)
            assert float(row["mean"]) == one["mean_score"] == pytest.approx(region.mean, rel=1e-4)
            assert row["verdict"] == image["verdict"] and one["category_id"] == coco["categories"][0]["id"]
        marked = sum((unpacked(one["segmentation"]) for one in annotated), np.zeros(prediction.anomaly_map.shape, bool))
        assert np.array_equal(marked, mask_of(found, marked.shape))
    assert [one["id"] for one in coco["annotations"]] == [*range(1, result.regions + 1)]


@pytest.mark.parametrize("border", [False, True])
def test_run_lengths_are_those_of_the_whole_image(border):
    image = np.random.default_rng(0).random((7, 5)) > 0.4
    image[-1, -1] = border
    for region in find_regions(image.astype(float), 0.5):
        counts = run_lengths(region, image.shape)
        assert np.array_equal(unpacked({"size": image.shape, "counts": counts}), mask_of([region], image.shape))
    whole = np.ones((3, 4))
    assert run_lengths(find_regions(whole, 0.5)[0], whole.shape) == [0, 12]


def test_predict_options_say_what_a_region_is(bundle, images, tmp_path):
    predict_folder(bundle, [images], tmp_path / "all")
    areas = [int(row["area"]) for row in rows(tmp_path / "all")]
    smallest = sorted(areas)[len(areas) // 2] + 1
    predict_folder(bundle, [images], tmp_path / "large", smallest_area=smallest)
    kept = [area for area in areas if area >= smallest]
    assert [int(row["area"]) for row in rows(tmp_path / "large")] == kept != areas
    assert predict_folder(bundle, [images], tmp_path / "none", pixel_threshold=1e6).regions == 0
    assert rows(tmp_path / "none") == []
    told = json.loads((tmp_path / "large" / "prediction.json").read_text())
    assert (told["smallest_area"], told["pixel_threshold"]) == (smallest, bundle.pixel_threshold)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"smallest_area": 0}, "at least 1 pixel"), ({"pixel_threshold": float("inf")}, "pixel threshold is inf")],
)
def test_predict_with_a_region_that_is_none_is_refused(bundle, images, tmp_path, options, words):
    with pytest.raises(ConfigError, match=words):
        predict_folder(bundle, [images], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_regions_after_a_kill_are_those_of_an_undisturbed_run(bundle, images, folder, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    predict_folder(bundle, [images], whole)
    wanted = [(whole / name).read_text() for name in ("regions.csv", "regions.json")]
    names = sorted(path.name for path in images.iterdir())
    predict_folder(bundle, [images / name for name in names[:3]], out)
    # Killed after the regions of the fourth image, amid those of the fifth, before their rows in scores.csv.
    known = (whole / ".records.jsonl").read_text().splitlines(keepends=True)
    with (out / ".records.jsonl").open("a") as file:
        file.write(known[3] + known[4][:20])
    (out / "regions.json").unlink()
    with (out / "regions.csv").open("a") as file:
        file.write("half a")
    result = predict_folder(bundle, [images], out)
    assert [(out / name).read_text() for name in ("regions.csv", "regions.json")] == wanted
    assert result.earlier == 3 and result.regions == len(rows(whole))
    # One that has changed since gets the regions that it has now.
    (images / names[0]).write_bytes(sorted(folder.rglob("*.png"))[-1].read_bytes())
    predict_folder(bundle, [images], out)
    changed = [row for row in rows(out) if row["path"] == str(images / names[0])]
    assert len(changed) == len(bundle.predict(images / names[0]).regions())
    assert not predict_folder(bundle, [images], out, overwrite=True, pixel_threshold=1e6).regions
