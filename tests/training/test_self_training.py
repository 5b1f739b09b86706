"""A network that trains itself goes through the same validation, threshold and bundle as any other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from msad.bundle.bundles import Bundle
from msad.errors import TrainingError
from msad.models import registry
from msad.models.base import SelfTraining
from msad.models.errors import ModelError
from msad.models.scorer import IMAGE_SCORE
from msad.models.synthesis.synthetic_defects import make_synthetic_defects
from msad.training.job_config import JobConfig
from msad.training.training_data import TrainingData
from tests.training.train import train

NAME = "own_memory:Memory"


class Memory(SelfTraining):
    """Remembers the mean image; `spoil_after` epochs it forgets it again."""

    map_names = ("difference", IMAGE_SCORE)

    def __init__(self, spoil_after: int = 99, broken: bool = False) -> None:
        super().__init__()
        self.spoil_after, self.broken, self.epochs_done = spoil_after, broken, 0
        self.weight = nn.Parameter(torch.ones(1))
        self.register_buffer("mean", torch.zeros(3, 64, 64))

    def fit(self, images_NHWC, *, epochs, batch_size, seed, after_epoch):
        mean = torch.from_numpy(np.asarray(images_NHWC)).permute(0, 3, 1, 2).float().mean(dim=0) / 255
        for epoch in range(1, epochs + 1):
            self.epochs_done = epoch
            self.mean.copy_(mean if epoch <= self.spoil_after else torch.rand(3, 64, 64))
            if epoch < epochs and not after_epoch(epoch, {"train_loss": 1 / epoch}):
                return

    def _maps(self, image):
        map_B1HW = (image - self.mean).abs().mean(dim=1, keepdim=True) / (0 if self.broken else 1)
        score_B = map_B1HW.flatten(1).amax(dim=1)
        return {"difference": map_B1HW, IMAGE_SCORE: score_B.view(-1, 1, 1, 1).expand_as(map_B1HW)}


@pytest.fixture
def data(monkeypatch):
    monkeypatch.setitem(registry._OWN, NAME, Memory)
    rng = np.random.default_rng(0)
    base = rng.integers(60, 190, (1, 64, 64, 3))
    images = (base + rng.integers(-5, 5, (20, 64, 64, 3))).astype(np.uint8)
    return TrainingData(images[:12], images[12:], make_synthetic_defects(images[12:], 0))


def job(model=None, **settings):
    return JobConfig(category="gear", architecture=NAME, image_size=64, model=model or {}, **settings)


def test_self_training_is_validated_now_and_then_and_at_its_end(data):
    fitted, reports, _ = train(job(epochs=5, evaluate_every=2), data)
    assert [report["epoch"] for report in reports] == [2, 4, 5]
    assert reports[0]["train_loss"] == 0.5 and reports[-1]["best_objective"] == fitted.validation["score"]
    assert fitted.validation["image_auroc"] > 0.6


def test_self_training_keeps_its_best_epoch(data):
    fitted, reports, _ = train(job({"spoil_after": 2}, epochs=4, evaluate_every=1), data)
    assert fitted.epoch == 1 and len(reports) == 4
    assert fitted.validation["score"] == reports[-1]["best_objective"]


def test_self_training_stops_when_it_gets_no_better(data):
    fitted, reports, _ = train(job({"spoil_after": 1}, epochs=50, evaluate_every=1, patience=2), data)
    assert fitted.epoch == 1 and [report["epoch"] for report in reports] == [1, 2, 3]
    assert fitted.model.epochs_done == 3


def test_self_training_with_maps_that_are_not_finite_is_a_training_error(data):
    with pytest.raises(TrainingError, match="maps of own_memory:Memory are not finite"):
        train(job({"broken": True}, epochs=1), data)


def test_self_training_has_no_losses():
    with pytest.raises(ModelError, match="no loss term"):
        Memory().losses(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64), torch.zeros(1, 1, 64, 64))


def test_self_trained_bundle_scores_as_the_model_did(data, tmp_path):
    settings = job(epochs=1)
    fitted, _, _ = train(settings, data)
    bundle = Bundle(fitted.model, fitted.scorer, fitted.threshold, settings)
    image_BCHW = torch.rand(2, 3, 64, 64)
    expected = bundle.score_batch(image_BCHW)
    for kept, loaded in zip(expected, Bundle.load(bundle.save(tmp_path / "b")).score_batch(image_BCHW), strict=True):
        assert torch.equal(kept, loaded)
