"""The loop: what it reports, that it learns, that it resumes exactly, and how it fails."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from msad.errors import TrainingError
from msad.models.errors import ModelError
from msad.models.kernels import native
from msad.models.synthesis.synthetic_defects import make_synthetic_defects
from msad.training import loop
from msad.training.job_config import SCHEDULES, JobConfig
from msad.training.training_data import TrainingData
from tests.training.train import train


@pytest.fixture(scope="module")
def data(demo) -> TrainingData:
    from msad.data_io.cache import load_images

    images = np.array(load_images(sorted((demo / "brick" / "train" / "good").iterdir()), 32))
    return TrainingData(images[:12], images[12:], make_synthetic_defects(images[12:], seed=0, per_group=1))


def job(**settings) -> JobConfig:
    values = {
        "epochs": 4,
        "evaluate_every": 1,
        "batch_size": 4,
        "image_size": 32,
        "model": {"base_width": 4, "depth": 2},
    }
    return JobConfig(category="brick", architecture="multiscale", **{**values, **settings})


def weights(fitted) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in fitted.model.state_dict().values()])


def test_fit_reports_every_figure_at_every_evaluation(data):
    fitted, reports, _ = train(job(evaluate_every=2, epochs=5), data)
    assert [metrics["epoch"] for metrics in reports] == [2, 4, 5]
    for metrics in reports:
        assert {"train_loss", "loss_l1", "learning_rate", "validation_score", "epoch_seconds"} <= set(metrics)
        assert all(math.isfinite(value) for value in metrics.values())
    # What choosing the best epoch is worth on images that did not choose it is no more than the highest evaluation.
    assert fitted.validation["score"] == pytest.approx(reports[-1]["best_objective"])
    assert fitted.epoch == max(reports, key=lambda metrics: metrics["validation_score"])["epoch"]
    assert 0.4 < fitted.validation["chance"] < 0.6 and fitted.false_alarms.held_out == len(data.validation_NHWC)


def test_fit_lowers_the_loss(data):
    _, reports, _ = train(job(epochs=12, learning_rate=3e-3), data)
    losses = [metrics["train_loss"] for metrics in reports]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(("steps", "taken"), [(0, 4 * 3), (6, 4 * 2), (32, 4 * 8)])
def test_fit_takes_as_many_steps_as_asked_for_over_its_epochs(steps, taken, data, monkeypatch):
    counted, step = [], torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *given, **named: counted.append(step(*given, **named)))
    _, reports, _ = train(job(steps=steps, augmentation={"kind": "none"}), data)
    assert len(counted) == taken and [metrics["epoch"] for metrics in reports] == [1, 2, 3, 4]
    assert reports[-1]["learning_rate"] < 0.1 * job().learning_rate  # the one cycle ends with the last step


def test_fit_twice_gives_the_same_weights(data):
    assert torch.equal(weights(train(job(), data)[0]), weights(train(job(), data)[0]))


@pytest.mark.parametrize(("bfloat16", "tolerance"), [(False, 1e-3), (True, 0.02)])
def test_fit_with_kernels_in_c_follows_the_losses_of_torch(bfloat16, tolerance, data, compiled, monkeypatch):
    monkeypatch.setattr(loop, "computes_in_bfloat16", lambda _: bfloat16)
    _, fast, _ = train(job(), data)
    monkeypatch.setattr(native, "_loaded", {})
    _, slow, _ = train(job(), data)
    fast, slow = ([metrics["train_loss"] for metrics in reports] for reports in (fast, slow))
    assert fast == pytest.approx(slow, rel=tolerance)


@pytest.mark.parametrize(("major", "supported"), [(7, False), (8, True), (12, True)])
def test_bfloat16_is_left_to_gpus_that_have_it(major, supported, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: SimpleNamespace(major=major))
    assert loop.computes_in_bfloat16(torch.device("cuda")) is supported


def test_fit_with_kernels_in_c_resumes_exactly(data, compiled):
    whole, _, states = train(job(), data)
    resumed, _, _ = train(job(), data, checkpoint=states[1])
    assert torch.equal(weights(whole), weights(resumed))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_fit_resumed_ends_with_the_weights_of_the_uninterrupted_run(data, schedule):
    settings = job(schedule=schedule, model={"base_width": 4, "depth": 2, "skip_dropout": 0.3})
    whole, _, states = train(settings, data)
    resumed, later, _ = train(settings, data, checkpoint=states[1])
    assert [metrics["epoch"] for metrics in later] == [3, 4]
    assert torch.equal(weights(whole), weights(resumed))
    assert whole.threshold == resumed.threshold and whole.epoch == resumed.epoch


def test_fit_resumed_after_its_last_epoch_only_validates(data):
    whole, _, states = train(job(), data)
    resumed, later, _ = train(job(), data, checkpoint=states[-1])
    assert not later
    assert torch.equal(weights(whole), weights(resumed)) and whole.threshold == pytest.approx(resumed.threshold)


def test_fit_stops_early_without_a_better_score(data):
    # A learning rate of almost nothing: no evaluation is much better than the first.
    _, reports, _ = train(job(epochs=30, patience=2, learning_rate=1e-12, schedule="constant"), data)
    assert len(reports) < 30


def test_fit_whose_loss_is_not_finite_names_the_epoch_and_the_remedy(data):
    with pytest.raises(
        TrainingError, match=r"(loss is|maps are) not finite in epoch 1 at learning_rate 1e\+30: lower it"
    ):
        train(job(learning_rate=1e30, gradient_clip=0.0, schedule="constant"), data)


def test_fit_out_of_memory_says_what_to_lower(data, monkeypatch):
    def exhausted(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(torch.Tensor, "backward", exhausted)
    with pytest.raises(TrainingError, match=r"out of memory on cpu with batch_size 4, image_size 32 .*lower"):
        train(job(), data)


def test_fit_with_an_unknown_loss_term_is_refused(data):
    with pytest.raises(ModelError, match="l1"):
        train(job(loss_weights={"l11": 1.0}), data)


def test_checkpoint_loads_without_unpickling_objects(data, tmp_path):
    for schedule in SCHEDULES:
        *_, (state,) = train(job(schedule=schedule, epochs=1), data)
        torch.save(state, tmp_path / "state.pt")
        assert torch.load(tmp_path / "state.pt", weights_only=True)["epoch"] == 1
