"""Statistics and thresholds rest on training images too, where a model can be made again without them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from msad.models.feature_memory import FeatureMemory
from msad.models.scorer import Scoring, reduce
from msad.models.smoothing import smooth
from msad.training.cross_fitting import usual_images, with_training_images
from msad.training.job_config import JobConfig
from msad.training.training_data import TrainingData
from msad.training.validation import anomaly_maps
from tests.training.train import shaded, train

SMALL = {"feature_memory": {"rows": 50}, "feature_ensemble": {"rows": 50, "width": 8, "bottleneck_channels": 4}}


@pytest.fixture(scope="module")
def data():
    return shaded()


@pytest.fixture(autouse=True)
def few_views(monkeypatch):
    monkeypatch.setattr("msad.training.batches.VIEWS_IN_ALL", 24)


def job(architecture):
    settings = {"epochs": 2, "evaluate_every": 1, "batch_size": 12}
    return JobConfig(category="gear", architecture=architecture, image_size=64, model=SMALL[architecture], **settings)


def test_thresholds_rest_on_training_images_too_that_the_model_was_made_without(data, monkeypatch):
    asked = []
    without = FeatureMemory.without

    def watched(self, left_out_N, count):
        asked.append((left_out_N.tolist(), count))
        return without(self, left_out_N, count)

    monkeypatch.setattr(FeatureMemory, "without", watched)
    fitted, _, _ = train(job("feature_memory"), data)
    assert fitted.false_alarms.held_out == fitted.false_regions.held_out == len(fitted.good_scores) == 8 + 12
    assert sorted(fitted.also_scored) == list(range(12))
    assert sorted(image for part, _ in asked for image in part) == list(range(12)) and {12} == {c for _, c in asked}
    monkeypatch.setattr("msad.training.cross_fitting._CROSS_FITTED", 0)  # as few as there are folds
    fitted, _, _ = train(job("feature_memory"), data)
    assert fitted.false_alarms.held_out == 8 + 4


def test_one_training_image_cannot_be_left_out(data, monkeypatch):
    monkeypatch.setattr("msad.training.batches.VIEWS_IN_ALL", 2)
    single = TrainingData(data.train_NHWC[:1], data.validation_NHWC, data.synthetic)
    fitted, _, _ = train(job("feature_memory"), single)
    assert fitted.false_alarms.held_out == 8


def test_ensemble_leaves_training_images_out_of_its_memory_alone(data):
    model = train(job("feature_ensemble"), data)[0].model
    other = model.without(np.arange(0, 12, 4), 12)
    image_BCHW = torch.rand(2, 3, 64, 64)
    kept, changed = model.anomaly_maps(image_BCHW), other.eval().anomaly_maps(image_BCHW)
    assert {name for name in kept if torch.equal(kept[name], changed[name])} == set(model.stepped_maps)


def test_scores_of_images_that_were_trained_on_have_the_moments_of_those_held_out(data):
    settings, scoring = job("feature_ensemble"), Scoring({"memory": 1.0, "mask": 1.0}, smoothing=2.0, reduction="top1")
    model = train(settings, data)[0].model
    images = torch.from_numpy(data.validation_NHWC).permute(0, 3, 1, 2).float() / 255
    held_out = anomaly_maps(model, [images])
    maps, also_scored = with_training_images(settings, model, data, held_out, scoring)
    seen = anomaly_maps(model, [torch.from_numpy(data.train_NHWC[also_scored]).permute(0, 3, 1, 2).float() / 255])
    score_N, score_G, before_N = (
        reduce(smooth(part["mask"], 2.0), "top1") for part in ({"mask": maps["mask"][8:]}, held_out, seen)
    )
    assert torch.equal(maps["mask"][:8], held_out["mask"]) and len(score_N) == 12
    assert score_N.mean().item() == pytest.approx(score_G.mean().item(), rel=1e-3)
    assert score_N.std().item() * (11 / 12) ** 0.5 == pytest.approx(score_G.std().item() * (7 / 8) ** 0.5, rel=1e-2)
    assert np.corrcoef(score_N, before_N)[0, 1] == pytest.approx(1, abs=1e-3)
    assert torch.equal(maps["squared"][8:], seen["squared"])  # which does not count


def test_the_twentieth_of_images_that_look_most_unlike_the_others_does_not_say_what_is_usual():
    maps_G1HW = torch.rand(40, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    maps_G1HW[[7, 30], :, 4:8, 4:8] += 5
    usual_G = usual_images(Scoring({"memory": 1.0}, reduction="top1", calibration="position"), {"memory": maps_G1HW})
    assert (~usual_G).nonzero().flatten().tolist() == [7, 30]


def test_statistics_are_those_of_usual_images_and_thresholds_count_all(data):
    spoilt = data.train_NHWC.copy()
    spoilt[5, 20:30, 20:30] = 255  # a defect among the good images
    settings = job("feature_memory")
    fitted, _, _ = train(settings, TrainingData(spoilt, data.validation_NHWC, data.synthetic))
    assert fitted.false_alarms.held_out == 20 and fitted.good_scores.argmax() == 8 + fitted.also_scored.index(5)
    at_defect = fitted.scorer.statistics["memory"].std[0, 22:28, 22:28].mean().item()
    assert at_defect < 1.5 * fitted.scorer.statistics["memory"].std.median().item()


def test_ensemble_resumed_ends_with_the_threshold_of_the_uninterrupted_run(data):
    whole, _, states = train(job("feature_ensemble"), data)
    resumed, _, _ = train(job("feature_ensemble"), data, checkpoint=states[0])
    assert whole.also_scored == resumed.also_scored and len(whole.good_scores) == 8 + 12
    np.testing.assert_array_equal(whole.good_scores, resumed.good_scores)
    assert whole.threshold == resumed.threshold
