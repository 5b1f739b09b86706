"""Recorded steps: the same numbers as unrecorded ones, and what cannot be recorded goes on all the same."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from models.synthesis.synthetic_defects import make_synthetic_defects
from orchestrator import training
from orchestrator.fitting import rows
from orchestrator.fitting.batches import TrainingData
from orchestrator.fitting.replay import Replayed
from orchestrator.job_config import JobConfig

pytestmark = pytest.mark.gpu

SETTINGS = {
    "multiscale": {"model": {"base_width": 8, "depth": 2}},
    "baseline": {"model": {"base_width": 8}},
    "multiscale_segmenter": {"model": {"base_width": 8, "segment_width": 8, "depth": 2}},
    "feature_pyramid": {"model": {"width": 16, "bottleneck_channels": 8}},
}


@pytest.fixture(scope="module")
def data(demo) -> TrainingData:
    from data_io.cache import load_images

    images = np.array(load_images(sorted((demo / "gear" / "train" / "good").iterdir()), 64))
    return TrainingData(images[:13], images[13:], make_synthetic_defects(images[13:], seed=0, per_group=1))


def losses(data: TrainingData, architecture: str, monkeypatch, *, recorded: bool, **settings) -> list[float]:
    """The loss of each epoch; 13 images in batches of 5 make two sizes of batches."""
    values = {"epochs": 6, "evaluate_every": 1, "batch_size": 5, "image_size": 64, **SETTINGS[architecture]}
    job = JobConfig(category="gear", architecture=architecture, **{**values, **settings})
    reports = []
    with monkeypatch.context() as context, warnings.catch_warnings():
        warnings.simplefilter("error")
        if not recorded:
            context.setattr(training, "Replayed", lambda step, _parameters, _generator: step)
        training.fit(
            job,
            data,
            device=torch.device("cuda"),
            report=lambda metrics, _state: reports.append(metrics),
            get_checkpoint=lambda: None,
        )
    return [metrics["train_loss"] for metrics in reports]


@pytest.mark.parametrize("architecture", SETTINGS)
def test_recorded_steps_learn_as_unrecorded_ones(data, architecture, monkeypatch):
    plain, recorded = (losses(data, architecture, monkeypatch, recorded=how) for how in (False, True))
    # Not to the last digit: the device adds up some gradients in an order of its own, from one run to the next.
    assert recorded == pytest.approx(plain, rel=0.02)
    assert recorded[-1] < recorded[0]


def test_recorded_steps_learn_as_on_the_cpu(data, monkeypatch):
    recorded = losses(data, "multiscale", monkeypatch, recorded=True, epochs=12, learning_rate=3e-3)
    reports = []
    job = JobConfig(
        category="gear",
        architecture="multiscale",
        epochs=12,
        evaluate_every=1,
        learning_rate=3e-3,
        batch_size=5,
        image_size=64,
        **SETTINGS["multiscale"],
    )
    training.fit(
        job,
        data,
        device=torch.device("cpu"),
        report=lambda metrics, _state: reports.append(metrics["train_loss"]),
        get_checkpoint=lambda: None,
    )
    assert recorded[-1] == pytest.approx(reports[-1], rel=0.2)


@pytest.mark.parametrize("architecture", ["multiscale", "feature_pyramid"])
def test_what_does_not_fit_on_the_device_is_streamed_to_the_same_end(data, architecture, monkeypatch):
    kept = losses(data, architecture, monkeypatch, recorded=True)
    monkeypatch.setattr(rows, "MOST_BYTES", 0)
    assert losses(data, architecture, monkeypatch, recorded=True) == pytest.approx(kept, rel=0.02)


def test_tiles_are_recorded_too(data, monkeypatch):
    tiled = {"tiling": {"tile": 32}, "epochs": 3, "evaluate_every": 3}
    plain, recorded = (losses(data, "multiscale", monkeypatch, recorded=how, **tiled) for how in (False, True))
    assert recorded == pytest.approx(plain, rel=0.02)


def test_a_step_that_waits_for_the_device_goes_on_unrecorded():
    weight = torch.nn.Parameter(torch.ones(3, device="cuda"))

    def step(batch_BC: torch.Tensor) -> torch.Tensor:
        loss = (batch_BC * weight).sum()
        if loss.item() < 0:  # waits
            loss = -loss
        loss.backward()
        return loss.detach().view(1)

    replayed = Replayed(step, [weight], torch.Generator("cuda"))
    batch_BC = torch.arange(6.0, device="cuda").view(2, 3)
    replayed(batch_BC)
    with pytest.warns(UserWarning, match="unrecorded"):
        assert replayed(batch_BC).item() == 15.0
    weight.grad = None
    assert replayed(2 * batch_BC).item() == 30.0
    assert weight.grad.tolist() == [6.0, 10.0, 14.0]


def test_each_batch_size_has_gradients_of_its_own():
    weight = torch.nn.Parameter(torch.ones(3, device="cuda"))

    def step(batch_BC: torch.Tensor) -> torch.Tensor:
        loss = (batch_BC * weight).sum()
        loss.backward()
        return loss.detach().view(1)

    replayed = Replayed(step, [weight], torch.Generator("cuda"))
    big, small = torch.ones(4, 3, device="cuda"), torch.ones(2, 3, device="cuda")
    for _ in range(3):
        for batch in (big, small):
            weight.grad = None
            assert replayed(batch).item() == 3 * len(batch)
            assert weight.grad.tolist() == [float(len(batch))] * 3
