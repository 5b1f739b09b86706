"""A job with tiles from training to prediction: what it learns, what its bundle keeps, what memory it needs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from msad.bundle.bundles import Bundle
from msad.bundle.export import export
from msad.data_io.cache import load_images
from msad.models.synthesis.synthetic_defects import make_synthetic_defects
from msad.models.tiling import Tiled
from msad.training.job_config import JobConfig
from msad.training.training_data import TrainingData
from tests.training.train import train

ARCHITECTURES = {
    "multiscale": {"base_width": 4, "depth": 2},
    "feature_ensemble": {"width": 8, "bottleneck_channels": 4, "rows": 20},
    "feature_memory": {"rows": 20},
    "feature_pyramid": {"width": 8, "bottleneck_channels": 4},
}


@pytest.fixture(scope="module")
def data(demo):
    images = np.array(load_images(sorted((demo / "brick" / "train" / "good").iterdir()), 64))
    defects = make_synthetic_defects(images[12:], seed=0, per_group=1, view_size=32)
    return TrainingData(images[:12], images[12:], defects)


@pytest.fixture
def few(monkeypatch):
    """As few tiles as images, to be quick."""
    monkeypatch.setattr("msad.training.batches.VIEWS_IN_ALL", 24)
    monkeypatch.setattr("msad.training.batches.EPOCH_IMAGES", 24)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tiled_job_is_trained_saved_loaded_and_predicts_images_of_any_size(architecture, data, tmp_path, few):
    job = JobConfig(
        category="brick",
        architecture=architecture,
        image_size=64,
        epochs=1,
        evaluate_every=1,
        batch_size=8,
        model=ARCHITECTURES[architecture],
        tiling={"tile": 32, "overlap": 16},
    )
    fitted, reports, _ = train(job, data)
    assert np.isfinite(reports[0].get("train_loss", 0)) and 0 <= reports[0]["validation_score"] <= 1
    bundle = Bundle(fitted.model, fitted.scorer, fitted.threshold, job)
    loaded = Bundle.load(bundle.save(tmp_path / "bundle"), device="cpu")
    assert isinstance(loaded.model, Tiled) and loaded.job == job and loaded.fingerprint() == bundle.fingerprint()
    image = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    before, after = bundle.predict(image), loaded.predict(image)
    assert before.score == after.score and np.array_equal(before.anomaly_map, after.anomaly_map)
    assert after.anomaly_map.shape == (90, 70) and np.isfinite(after.anomaly_map).all()
    if architecture == "multiscale":
        exported = export(loaded, tmp_path / "model.pt2")  # refuses to write what differs from the bundle
        assert exported.images >= 4 and exported.path.stat().st_size > 0
    # In parts or at once, large images get the same scores.
    images_BCHW = torch.rand(3, 3, 64, 64)
    at_once = loaded.score_batch(images_BCHW)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("msad.bundle.batch_scoring._PIXELS_AT_ONCE", 64 * 64)
        for whole, parts in zip(at_once, loaded.score_batch(images_BCHW), strict=True):
            torch.testing.assert_close(whole, parts, atol=1e-4, rtol=1e-4)


def test_tiled_job_resumes_where_it_was(data, few):
    job = JobConfig(
        category="brick",
        architecture="multiscale",
        image_size=64,
        epochs=2,
        evaluate_every=1,
        batch_size=25,
        schedule="constant",
        model=ARCHITECTURES["multiscale"],
        tiling={"tile": 32},
    )
    _, _, states = train(dataclasses.replace(job, epochs=1), data)
    resumed, _, states = train(job, data, checkpoint=states[0])
    assert resumed.epoch in (1, 2) and states[-1]["epoch"] == 2
