"""Recorded steps and scorings: the same numbers as unrecorded ones; what cannot be recorded goes on all the same."""

from __future__ import annotations

import gc
import threading
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

from msad.models.synthesis.synthetic_defects import make_synthetic_defects
from msad.training import array_loader, cuda_graphs, loop
from msad.training.cuda_graphs import ReplayedScoring, ReplayedStep
from msad.training.job_config import JobConfig
from msad.training.training_data import TrainingData
from tests.training.train import train

gpu = pytest.mark.gpu

SETTINGS = {
    "multiscale": {"model": {"base_width": 8, "depth": 2}},
    "baseline": {"model": {"base_width": 8}},
    "multiscale_segmenter": {"model": {"base_width": 8, "segment_width": 8, "depth": 2}},
    "feature_pyramid": {"model": {"width": 16, "bottleneck_channels": 8}},
}


@pytest.fixture(scope="module")
def data(demo) -> TrainingData:
    from msad.data_io.cache import load_images

    images = np.array(load_images(sorted((demo / "gear" / "train" / "good").iterdir()), 64))
    return TrainingData(images[:13], images[13:], make_synthetic_defects(images[13:], seed=0, per_group=1))


def losses(data: TrainingData, architecture: str, monkeypatch, *, recorded: bool, **settings) -> list[float]:
    """The loss of each epoch; 13 images in batches of 5 make two sizes of batches."""
    values = {"epochs": 6, "evaluate_every": 1, "batch_size": 5, "image_size": 64, **SETTINGS[architecture]}
    job = JobConfig(category="gear", architecture=architecture, **{**values, **settings})
    with monkeypatch.context() as context, warnings.catch_warnings():
        warnings.simplefilter("error")
        if not recorded:
            context.setattr(loop, "ReplayedStep", lambda step, _parameters, _generator: step)
        _, reports, _ = train(job, data, device="cuda")
    return [metrics["train_loss"] for metrics in reports]


@gpu
@pytest.mark.parametrize("architecture", SETTINGS)
def test_recorded_steps_learn_as_unrecorded_ones(data, architecture, monkeypatch):
    plain, recorded = (losses(data, architecture, monkeypatch, recorded=how) for how in (False, True))
    # Not to the last digit: the device adds up some gradients in an order of its own, from one run to the next.
    assert recorded == pytest.approx(plain, rel=0.02)
    assert recorded[-1] < recorded[0]


@gpu
def test_recorded_steps_learn_as_on_the_cpu(data, monkeypatch):
    recorded = losses(data, "multiscale", monkeypatch, recorded=True, epochs=12, learning_rate=3e-3)
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
    _, reports, _ = train(job, data)
    assert recorded[-1] == pytest.approx(reports[-1]["train_loss"], rel=0.2)


@gpu
@pytest.mark.parametrize("architecture", ["multiscale", "feature_pyramid"])
def test_what_does_not_fit_on_the_device_is_streamed_to_the_same_end(data, architecture, monkeypatch):
    kept = losses(data, architecture, monkeypatch, recorded=True)
    monkeypatch.setattr(array_loader, "MOST_BYTES", 0)
    assert losses(data, architecture, monkeypatch, recorded=True) == pytest.approx(kept, rel=0.02)


@gpu
def test_tiles_are_recorded_too(data, monkeypatch):
    tiled = {"tiling": {"tile": 32}, "epochs": 3, "evaluate_every": 3}
    plain, recorded = (losses(data, "multiscale", monkeypatch, recorded=how, **tiled) for how in (False, True))
    assert recorded == pytest.approx(plain, rel=0.02)


@gpu
def test_a_step_that_waits_for_the_device_goes_on_unrecorded():
    weight = torch.nn.Parameter(torch.ones(3, device="cuda"))

    def step(batch_BC: torch.Tensor) -> torch.Tensor:
        loss = (batch_BC * weight).sum()
        if loss.item() < 0:  # waits
            loss = -loss
        loss.backward()
        return loss.detach().view(1)

    replayed = ReplayedStep(step, [weight], torch.Generator("cuda"))
    batch_BC = torch.arange(6.0, device="cuda").view(2, 3)
    replayed(batch_BC)
    with pytest.warns(UserWarning, match="unrecorded"):
        assert replayed(batch_BC).item() == 15.0
    weight.grad = None
    assert replayed(2 * batch_BC).item() == 30.0
    assert weight.grad.tolist() == [6.0, 10.0, 14.0]


@gpu
def test_each_batch_size_has_gradients_of_its_own():
    weight = torch.nn.Parameter(torch.ones(3, device="cuda"))

    def step(batch_BC: torch.Tensor) -> torch.Tensor:
        loss = (batch_BC * weight).sum()
        loss.backward()
        return loss.detach().view(1)

    replayed = ReplayedStep(step, [weight], torch.Generator("cuda"))
    big, small = torch.ones(4, 3, device="cuda"), torch.ones(2, 3, device="cuda")
    for _ in range(3):
        for batch in (big, small):
            weight.grad = None
            assert replayed(batch).item() == 3 * len(batch)
            assert weight.grad.tolist() == [float(len(batch))] * 3


@gpu
@pytest.mark.parametrize("own", [False, True], ids=["torch's generator", "a generator of its own"])
def test_a_failed_recording_leaves_generators_memory_and_streams_usable(own):
    generator = torch.Generator("cuda").manual_seed(1)
    drawn_from = generator if own else None

    def run(waits=True):
        drawn = torch.rand(1 << 20, device="cuda", generator=drawn_from)
        return drawn.sum().item() if waits else drawn

    torch.manual_seed(1)
    run()
    gc.collect()
    torch.cuda.empty_cache()
    stream, memory, state = torch.cuda.current_stream(), torch.cuda.memory_reserved(), torch.cuda.get_rng_state()
    own_state = generator.get_state()
    with pytest.raises(RuntimeError):
        cuda_graphs.record(run, torch.device("cuda"), generators=[generator])
    assert torch.cuda.current_stream() == stream
    assert torch.equal(torch.cuda.get_rng_state(), state) and torch.equal(generator.get_state(), own_state)
    run()
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= memory
    torch.manual_seed(2)
    generator.manual_seed(2)
    wanted = run(waits=False).clone()
    torch.manual_seed(2)
    generator.manual_seed(2)
    graph, found = cuda_graphs.record(lambda: run(waits=False), torch.device("cuda"), generators=[generator])
    graph.replay()
    assert torch.equal(found, wanted)


@gpu
def test_graphs_are_recorded_while_another_thread_pins_and_takes_memory():
    done, value, problems = threading.Event(), torch.zeros(1, device="cuda"), []

    def go_on():
        try:
            while not done.is_set():
                torch.ones(1 << 16).pin_memory().to("cuda", non_blocking=True)
                torch.empty(1 << 24, device="cuda")
                torch.cuda.empty_cache()
        except RuntimeError as error:
            problems.append(error)

    beside = threading.Thread(target=go_on)
    beside.start()
    try:
        graphs = [cuda_graphs.record(lambda: value.add_(1), value.device)[0] for _ in range(20)]
    finally:
        done.set()
        beside.join()
    for graph in graphs:
        graph.replay()
    assert not problems and value.item() == 20


@gpu
@pytest.mark.skipif("torch.cuda.device_count() < 2")
def test_graphs_are_recorded_on_another_device_than_the_current_one():
    for device in (torch.device("cuda:0"), torch.device("cuda:1")):
        weight = torch.nn.Parameter(torch.ones(3, device=device))
        scoring = ReplayedScoring(
            lambda image, weight=weight: (image * weight, image.sum()), torch.nn.ParameterList([weight])
        )
        for number in range(3):
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("error")
                assert scoring(torch.full((2, 3), float(number), device=device))[1].item() == 6 * number


@pytest.fixture
def recorder(monkeypatch):
    """What records on a CPU: a graph does again what was recorded, into the same tensors."""
    known = SimpleNamespace(recorded=0, replayed=0, fails=None, pools=[])

    def record(run, device, *, generators=(), pool=None):
        known.pools.append(pool)
        if known.fails:
            run()
            raise known.fails
        known.recorded += 1
        made = run()

        def replay():
            known.replayed += 1
            again = run()
            for one, other in zip(*map(tree_leaves, (made, again)), strict=True):
                if isinstance(one, torch.Tensor):
                    one.copy_(other)

        return SimpleNamespace(replay=replay, pool=lambda: "memory"), made

    monkeypatch.setattr(cuda_graphs, "record", record)
    monkeypatch.setattr(cuda_graphs, "run_aside", lambda run, _device: run())
    return known


def summed():
    weight = torch.nn.Parameter(torch.ones(3))

    def step(batch_BC):
        loss = (batch_BC * weight).sum()
        loss.backward()
        return loss.detach().view(1)

    return weight, ReplayedStep(step, [weight], torch.Generator())


def test_second_step_of_a_size_is_recorded_and_sizes_share_the_memory(recorder):
    weight, replayed = summed()
    for number in range(4):
        for count in (4, 2):
            weight.grad = None
            assert replayed(torch.full((count, 3), float(number))).item() == 3 * count * number
    assert recorder.recorded == 2 and recorder.replayed == 6
    assert recorder.pools == [None, "memory"]


def test_step_that_cannot_be_recorded_is_not_tried_again_and_keeps_no_gradient_of_the_attempt(recorder):
    weight, replayed = summed()
    replayed(torch.ones(2, 3))
    recorder.fails = RuntimeError("operation not permitted when stream is capturing\nmore")
    weight.grad = None
    with pytest.warns(UserWarning, match=r"steps run unrecorded.*\(operation not permitted when stream is capturing\)"):
        assert replayed(torch.ones(2, 3)).item() == 6
    assert weight.grad.tolist() == [2, 2, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for count in (2, 2, 5, 5):
            weight.grad = None
            assert replayed(torch.ones(count, 3)).item() == 3 * count
            assert weight.grad.tolist() == [count] * 3
    assert recorder.recorded == 0 and len(recorder.pools) == 1


def test_full_device_while_recording_is_told_as_such(recorder):
    _, replayed = summed()
    replayed(torch.ones(2, 3))
    recorder.fails = torch.OutOfMemoryError("full")
    with pytest.raises(torch.OutOfMemoryError):
        replayed(torch.ones(2, 3))


def test_reason_of_a_failed_recording_is_the_first_error(recorder):
    _, replayed = summed()
    replayed(torch.ones(2, 3))
    recorder.fails = RuntimeError("the recording has ended")
    recorder.fails.__context__ = RuntimeError("something waited")
    with pytest.warns(UserWarning, match=r"\(something waited\)"):
        replayed(torch.ones(2, 3))


def test_scoring_is_recorded_from_the_second_batch_of_a_size_and_again_when_weights_move(recorder):
    model = torch.nn.Linear(3, 1)
    scoring = ReplayedScoring(lambda image: (model(image), image.sum(dim=1)), model)
    with torch.no_grad():
        for count in (1, 1, 4, 1, 4, 4):
            image = torch.rand(count, 3)
            for found, wanted in zip(scoring(image), (model(image), image.sum(dim=1)), strict=True):
                torch.testing.assert_close(found, wanted)
        assert recorder.recorded == 2
        model.weight.data = 2 * model.weight.data
        for _ in range(2):
            torch.testing.assert_close(scoring(image)[0], model(image))
    assert recorder.recorded == 3


def test_oldest_of_too_many_recordings_is_forgotten(recorder):
    model = torch.nn.Linear(3, 1)
    scoring = ReplayedScoring(lambda image: (model(image), image.sum(dim=1)), model)
    with torch.no_grad():
        for count in (1, 1, 2, 2, 3, 3, 4, 4, 5, 5):
            scoring(torch.rand(count, 3))
        assert (recorder.recorded, recorder.replayed) == (5, 5)
        for count, recorded, replayed in ((2, 5, 6), (1, 5, 6), (1, 6, 7), (2, 6, 7)):
            image = torch.rand(count, 3)
            torch.testing.assert_close(scoring(image)[0], model(image))
            assert (recorder.recorded, recorder.replayed) == (recorded, replayed)


def test_scoring_that_cannot_be_recorded_goes_on(recorder):
    model = torch.nn.Linear(3, 1)
    scoring = ReplayedScoring(lambda image: (model(image), image.sum(dim=1)), model)
    image = torch.rand(2, 3)
    with torch.no_grad():
        scoring(image)
        recorder.fails = RuntimeError("no")
        with pytest.warns(UserWarning, match="scoring runs unrecorded"):
            torch.testing.assert_close(scoring(image)[0], model(image))
        torch.testing.assert_close(scoring(image)[0], model(image))
    assert len(recorder.pools) == 1


def test_nothing_is_pinned_while_a_graph_is_recorded():
    order, pins = [], threading.Event()

    def pin():
        pins.set()
        with cuda_graphs.unrecorded():
            order.append("pinned")

    with cuda_graphs._alone:  # as `record` holds it
        reader = threading.Thread(target=pin)
        reader.start()
        assert pins.wait(60)
        order.append("recorded")
    reader.join()
    assert order == ["recorded", "pinned"]


class Stuck:
    """A generator that a failed recording has left in the middle, or one that is well."""

    device = torch.device("cpu")

    def __init__(self, well):
        self.well, self.given, self.state = well, [], torch.zeros(1)

    def get_state(self):
        return self.state

    def set_state(self, state):
        self.given.append(("state", state))

    def graphsafe_set_state(self, state):
        self.given.append(("another", state))


@pytest.mark.parametrize("well", [True, False])
def test_generator_gets_another_state_only_where_it_is_stuck(well, monkeypatch):
    def draw(_shape, *, generator, device):
        if not generator.well:
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")

    generator = Stuck(well)
    monkeypatch.setattr(torch, "rand", draw)
    cuda_graphs._mend(generator, "before")
    assert generator.given == ([("state", generator.state)] if well else [("another", "before")])
