"""A network that takes no steps goes through the same validation, threshold and bundle as any other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from msad.bundle.bundles import Bundle
from msad.models.pose import Pose
from msad.models.registry import build
from msad.models.synthesis.synthetic_defects import make_synthetic_defects
from msad.training.batches import FeatureBatches, make_batches
from msad.training.job_config import JobConfig
from msad.training.training_data import TrainingData
from tests.bolts import SIDE, bolts
from tests.training.train import shaded, train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data():
    return shaded()


def job(**settings):
    model = {"rows": 50, **settings.pop("model", {})}
    return JobConfig(category="gear", architecture="feature_memory", image_size=64, model=model, **settings)


def test_training_free_model_is_reported_validated_and_delivered(data, tmp_path, monkeypatch):
    monkeypatch.setattr("msad.training.batches.VIEWS_IN_ALL", 24)
    settings = job(epochs=50)
    fitted, reports, _ = train(settings, data)
    assert [report["epoch"] for report in reports] == [1] and fitted.epoch == 1
    assert reports[0]["best_objective"] == reports[0]["validation_score"] == fitted.validation["score"]
    assert fitted.validation["image_auroc"] > 0.6 and np.isfinite(fitted.threshold)
    assert fitted.model.memory.bank_RC.shape == (50, 472)
    bundle = Bundle(fitted.model, fitted.scorer, fitted.threshold, settings)
    image_BCHW = torch.rand(2, 3, 64, 64)
    expected = bundle.score_batch(image_BCHW)
    loaded = Bundle.load(bundle.save(tmp_path / "bundle"), device="cpu")
    for kept, found in zip(expected, loaded.score_batch(image_BCHW), strict=True):
        assert torch.equal(kept, found)


@pytest.mark.parametrize(("kind", "views"), [("none", 1), ("aligned", 2)])
def test_features_of_a_training_free_model_are_clean_ones_alone(data, monkeypatch, kind, views):
    monkeypatch.setattr("msad.training.batches.VIEWS_IN_ALL", 24)
    kept = {}

    def cached(key, make):
        kept[key] = make()
        return kept[key]

    watched = TrainingData(data.train_NHWC, data.validation_NHWC, data.synthetic, cached=cached)
    model = build("feature_memory", rows=5)
    batches = FeatureBatches(job(augmentation={"kind": kind}), watched, model, CPU)
    (features,) = (arrays for key, arrays in kept.items() if key.startswith("features"))
    assert {name[:-1] for name in features} == {"clean", "validation", "changed", "synthetic"}
    assert sum(len(part[0]) for part in batches.clean()) == len(features["clean0"]) == 12 * views
    assert not any(key.startswith("noise") for key in kept)


@pytest.mark.parametrize("architecture", ["feature_memory", "feature_ensemble"])
def test_pose_is_found_once_for_jobs_on_the_same_images(data, monkeypatch, architecture):
    monkeypatch.setattr("msad.training.batches.VIEWS_IN_ALL", 1)
    good, kept = bolts(np.linspace(0, 345, 24)), {}

    def cached(name, make):
        if name not in kept:
            kept[name] = make()
        return kept[name]

    watched = TrainingData(good, good[:2], make_synthetic_defects(good[:2], 0), cached=cached)
    settings = JobConfig(category="gear", architecture=architecture, image_size=SIDE)
    first, second, alone = (build(architecture, rows=5) for _ in range(3))
    make_batches(settings, watched, first, CPU)
    monkeypatch.setattr("msad.models.pose.empty_background", None)  # it would be asked for first
    make_batches(settings, watched, second, CPU)
    monkeypatch.undo()
    alone.meet(good)
    poses = [part.found_7 for model in (first, second, alone) for part in model.modules() if isinstance(part, Pose)]
    assert len(poses) == 3 and poses[0].any()
    assert torch.equal(poses[0], poses[2]) and torch.equal(poses[1], poses[2])


def test_kept_features_are_those_of_the_stages_the_light_and_the_pose_asked_for(data, monkeypatch):
    monkeypatch.setattr("msad.training.batches.VIEWS_IN_ALL", 1)
    keys = set()

    def cached(key, make):
        keys.add(key) if key.startswith("features") else None
        return make()

    watched = TrainingData(data.train_NHWC, data.validation_NHWC, data.synthetic, cached=cached)
    monkeypatch.setattr("msad.training.batches.source", lambda name: f"{name} of another package")
    settings = job()
    FeatureBatches(settings, watched, build("feature_memory"), CPU)
    monkeypatch.undo()
    monkeypatch.setattr("msad.training.batches.VIEWS_IN_ALL", 1)
    for model in ({}, {"light": "kept"}, {"finest_stride": 32}, {"pose": "kept"}, {"rows": 7}):
        settings = job(model=model)
        FeatureBatches(settings, watched, build("feature_memory", **settings.model), CPU)
    assert len(keys) == 5  # how many rows are kept changes no feature
