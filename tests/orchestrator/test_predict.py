"""Prediction over folders: what is written, what is skipped, what is refused."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from orchestrator.errors import ConfigError, ResourceError
from orchestrator.predict import predict_folder


def read_scores(out):
    return list(csv.DictReader((out / "scores.csv").open()))


@pytest.fixture
def folder(demo, category):
    return demo / category / "test"


def test_predict_folder_writes_a_row_and_a_heatmap_per_image(bundle, folder, tmp_path):
    result = predict_folder(bundle, [folder], tmp_path / "out", batch_size=5)
    files = sorted(folder.rglob("*.png"))
    rows = read_scores(tmp_path / "out")
    assert [row["path"] for row in rows] == [str(path) for path in files]
    assert result.scored == len(files) and not result.failed
    assert result.anomalous == sum(row["verdict"] == "anomalous" for row in rows)
    for row in rows:
        assert (float(row["score"]) > float(row["threshold"])) == (row["verdict"] == "anomalous")
        assert float(row["threshold"]) == bundle.threshold
    # Files of one name in two folders keep a heatmap each, at the image's own size.
    for path in files:
        with Image.open(tmp_path / "out" / "heatmaps" / path.relative_to(folder)) as heatmap, Image.open(path) as image:
            assert heatmap.size == image.size


def test_predict_folder_corrupt_file_is_skipped_and_reported(bundle, folder, tmp_path):
    good = next(folder.rglob("*.png"))
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.png").write_bytes(good.read_bytes())
    (images / "b.png").write_bytes(good.read_bytes()[:100])
    (images / "c.png").write_bytes(good.read_bytes())
    result = predict_folder(bundle, [images], tmp_path / "out")
    assert [row["path"] for row in read_scores(tmp_path / "out")] == [str(images / "a.png"), str(images / "c.png")]
    assert list(result.failed) == [images / "b.png"] and "decoded" in result.failed[images / "b.png"]


def test_predict_folder_killed_in_the_middle_has_written_all_batches_before(bundle, folder, tmp_path, monkeypatch):
    calls = []
    real = type(bundle).predict

    def killed_at_the_third(self, images, batch_size):
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, images, batch_size)

    monkeypatch.setattr(type(bundle), "predict", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        predict_folder(bundle, [folder], tmp_path / "out", batch_size=2)
    assert len(read_scores(tmp_path / "out")) == 4


def test_predict_folder_threshold_replaces_the_bundles_own(bundle, folder, tmp_path):
    result = predict_folder(bundle, [folder], tmp_path, threshold=-1e9, save_heatmaps=False)
    assert result.anomalous == result.scored > 0
    assert not (tmp_path / "heatmaps").exists()
    with pytest.raises(ConfigError, match="finite"):
        predict_folder(bundle, [folder], tmp_path, threshold=float("nan"))


def test_predict_folder_maps_are_float_arrays_at_the_images_size(bundle, folder, tmp_path):
    path = next(folder.rglob("*.png"))
    predict_folder(bundle, [path], tmp_path, save_maps=True, save_heatmaps=False)
    anomaly_map = np.load(tmp_path / "maps" / f"{path.stem}.npy", allow_pickle=False)
    assert np.array_equal(anomaly_map, bundle.predict(path).anomaly_map)


def test_predict_folder_out_inside_the_input_is_not_read_back(bundle, folder, tmp_path):
    Image.open(next(folder.rglob("*.png"))).save(tmp_path / "part.png")
    for _ in range(2):
        assert predict_folder(bundle, [tmp_path], tmp_path / "out").scored == 1


def test_predict_folder_same_name_with_two_suffixes_keeps_both_heatmaps(bundle, folder, tmp_path):
    image = Image.open(next(folder.rglob("*.png"))).convert("RGB")
    for name in ("part.png", "part.bmp"):
        image.save(tmp_path / name)
    predict_folder(bundle, [tmp_path / "part.png", tmp_path / "part.bmp"], tmp_path / "out")
    assert {path.name for path in (tmp_path / "out" / "heatmaps").iterdir()} == {"part.png.png", "part.bmp.png"}


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
