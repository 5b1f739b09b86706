"""How long an image takes: the same before training as after it, and a refusal above a budget."""

from __future__ import annotations

import pickle

import pytest
import torch

from msad.bundle import latency
from msad.bundle.latency import latency_within, measure_latency, untrained_bundle
from msad.errors import TooSlow
from msad.models.base import SelfTraining
from msad.models.registry import architecture
from msad.training.job_config import JobConfig


@pytest.mark.parametrize("name", ["feature_memory", "feature_pyramid", "feature_ensemble", "multiscale"])
@pytest.mark.parametrize("tile", [0, 64])
def test_network_is_timed_before_it_is_trained(name, tile):
    defaults = architecture(name).training_defaults
    job = JobConfig(category="a", architecture=name, image_size=128, **defaults).with_parameters({"tiling/tile": tile})
    bundle = untrained_bundle(job, torch.device("cpu"))
    assert measure_latency(bundle) > 0
    map_B1HW, score_B = bundle.score_batch(torch.rand(1, 3, 128, 128))
    assert map_B1HW.shape == (1, 1, 128, 128) and torch.isfinite(score_B).all()


def test_untrained_memory_is_as_large_as_a_full_one():
    job = JobConfig(category="a", architecture="feature_memory", image_size=64, model={"rows": 300})
    assert untrained_bundle(job, torch.device("cpu")).model.memory.bank_RC.shape[0] == 300


class Bank(SelfTraining):
    """A network of which nothing is there before its training."""

    map_names = ("bank",)

    def fit(self, images_NHWC, *, epochs, batch_size, seed, after_epoch):
        raise NotImplementedError

    def _maps(self, image):
        raise NotImplementedError


def test_model_that_is_made_by_its_training_has_no_untrained_one(monkeypatch):
    monkeypatch.setattr(latency, "build", lambda _architecture, **_model: Bank())
    assert untrained_bundle(JobConfig(category="a", architecture="baseline"), torch.device("cpu")) is None


def test_latency_above_a_budget_is_measured_again_before_it_is_refused(monkeypatch):
    def times(*found):
        left = list(found)
        monkeypatch.setattr(latency, "measure_latency", lambda _model: left.pop(0))

    times(25.0, 18.0)
    assert latency_within(None, 20.0) == 18.0
    times(25.0)
    assert latency_within(None) == 25.0
    times(40.0, 31.5, 35.0)
    with pytest.raises(TooSlow, match=r"an image takes 31\.5 ms, the budget is 20"):
        latency_within(None, 20.0)


def test_refusal_comes_through_from_another_process():
    error = pickle.loads(pickle.dumps(TooSlow(31.5, 20.0)))
    assert (error.latency, error.budget) == (31.5, 20.0)
