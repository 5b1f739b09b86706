"""Bundles in Python: every kind of image is scored alike, and what cannot be is refused by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from msad.bundle.bundles import Bundle
from msad.data_io.errors import DataError
from msad.errors import BundleError, ConfigError

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def photographs(demo, category):
    return sorted((demo / category / "test").rglob("*.png"))


@pytest.fixture
def saved(bundle, tmp_path):
    return bundle.save(tmp_path / "bundle")


def test_load_of_a_folder_that_is_not_there_names_it(tmp_path):
    with pytest.raises(BundleError, match=r"nowhere: no such folder; msad\.load takes a run ID"):
        Bundle.load(str(tmp_path / "nowhere"))


def test_bundle_threshold_not_finite_is_refused(bundle):
    with pytest.raises(BundleError, match="must be finite"):
        Bundle(bundle.model, bundle.scorer, float("nan"), bundle.job)


def test_predict_path_array_and_pil_image_agree(bundle, photographs):
    path = photographs[0]
    image = Image.open(path)
    kinds = [path, str(path), image, np.asarray(image.convert("RGB"))]
    predictions = [bundle.predict(kind) for kind in kinds]
    assert len({prediction.score for prediction in predictions}) == 1
    assert all(np.array_equal(prediction.anomaly_map, predictions[0].anomaly_map) for prediction in predictions)
    assert predictions[0].is_anomalous == (predictions[0].score > bundle.threshold)


def test_predict_list_of_differing_sizes_gives_maps_at_each_own_size(bundle, photographs):
    images = [Image.open(path).convert("RGB") for path in photographs[:3]]
    images[1], images[2] = images[1].resize((90, 41)), images[2].resize((17, 23))
    predictions = bundle.predict(images, batch_size=2)
    assert [p.anomaly_map.shape for p in predictions] == [images[0].size[::-1], (41, 90), (23, 17)]
    assert all(p.anomaly_map.dtype == np.float32 and np.isfinite(p.anomaly_map).all() for p in predictions)
    for image, prediction in zip(images, predictions, strict=True):
        assert bundle.predict(image).score == pytest.approx(prediction.score, rel=1e-4)


def test_predict_array_batch_is_a_list(bundle, photographs):
    images = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in photographs[:2]])
    assert [p.score for p in bundle.predict(images)] == [p.score for p in bundle.predict(list(images))]


def test_predict_arrays_and_pil_images_of_every_kind_are_converted_as_their_files_are(bundle, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "grey": rng.integers(0, 256, (48, 40), dtype=np.uint8),
        "grey16": rng.integers(0, 65536, (48, 40)).astype(np.uint16),
        "colour": rng.integers(0, 256, (48, 40, 3), dtype=np.uint8),
        "transparent": rng.integers(0, 256, (48, 40, 4), dtype=np.uint8),
        "cut out": rng.integers(0, 256, (60, 60), dtype=np.uint8)[5:53, 7:47],
    }
    for name, array in arrays.items():
        image = Image.fromarray(array)
        image.save(tmp_path / f"{name}.png")
        expected = bundle.predict(tmp_path / f"{name}.png")
        assert bundle.predict(array).score == bundle.predict(image).score == expected.score, name
        assert expected.anomaly_map.shape == (48, 40)
    assert len({bundle.predict(array).score for array in arrays.values()}) == len(arrays)


def test_predict_stated_orientation_is_applied_to_files_and_pil_images(bundle, photographs, tmp_path):
    upright = Image.open(photographs[0]).convert("RGB").crop((0, 0, 60, 30))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    upright.rotate(90, expand=True).save(tmp_path / "lying.png", exif=exif)
    turned, expected = bundle.predict(tmp_path / "lying.png"), bundle.predict(upright)
    assert turned.score == expected.score == bundle.predict(Image.open(tmp_path / "lying.png")).score
    assert np.array_equal(turned.anomaly_map, expected.anomaly_map) and turned.anomaly_map.shape == (30, 60)


@pytest.mark.parametrize("images", [[], (), np.zeros((0, 8, 8, 3), np.uint8)])
def test_predict_nothing_is_an_empty_list(bundle, images):
    assert bundle.predict(images) == []


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8, 3)),
        np.zeros((8, 8, 2), np.uint16),
        np.zeros((8, 8), np.float32),
        np.zeros((8, 8, 2), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros(8, np.uint8),
        7,
        None,
    ],
)
def test_predict_wrong_kind_of_image_is_a_data_error(bundle, image):
    with pytest.raises(DataError, match="uint8 H×W×3"):
        bundle.predict([image])


def test_predict_pil_image_of_a_damaged_file_is_a_data_error(bundle, photographs, tmp_path):
    (tmp_path / "cut.png").write_bytes(photographs[0].read_bytes()[:400])
    with Image.open(tmp_path / "cut.png") as image, pytest.raises(DataError, match=r"the image given: .*damaged"):
        bundle.predict(image)


def test_load_device_that_is_not_there_is_refused_by_name(saved):
    for name in ("cuda:77", "gpu"):
        with pytest.raises(ConfigError, match=name):
            Bundle.load(saved, device=name)


def test_fingerprint_is_the_models_own_wherever_it_lies(bundle, make_bundle, saved, tmp_path):
    copy = Bundle.load(bundle.save(tmp_path / "copy"), device="cpu")
    assert bundle.fingerprint() == copy.fingerprint() == Bundle.load(saved, device="cpu").fingerprint()
    assert make_bundle(smoothing=1.5).fingerprint() != bundle.fingerprint()
    with torch.no_grad():
        next(copy.model.parameters())[0, 0, 0, 0] += 1
    assert copy.fingerprint() != bundle.fingerprint()


def test_bundles_import_without_ray_and_mlflow():
    modules = ", ".join(
        f"msad.{name}" for name in ("bundle.bundles", "bundle.predict", "bundle.evaluation", "pictures.gallery")
    )
    code = f"import sys; sys.modules['ray'] = sys.modules['mlflow'] = None; import {modules}"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0
