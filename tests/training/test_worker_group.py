"""Several workers that train one model: the same curve as one worker, shared errors, a killed worker."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch import multiprocessing

from msad.cluster.workers.job_worker import load_training_data, run
from msad.cluster.workers.task import Task
from msad.errors import TrainingError
from msad.models.synthesis.synthetic_defects import make_synthetic_defects
from msad.training.job_config import JobConfig
from msad.training.loop import computes_in_bfloat16
from msad.training.training_data import TrainingData
from msad.training.worker_group import SINGLE_WORKER, WorkerGroup
from msad.workspace import JobDirectory
from tests.training.train import train

# Group normalisation looks at each image by itself, and without dropout nothing is drawn for a part of a batch. The
# last batch of an epoch has one image, and so nothing for the second worker. Groups of two channels: where a channel is
# normalised alone, the bias before it has no gradient but rounding, and AdamW steps as far by that as by any other.
SETTINGS = {
    "architecture": "multiscale",
    "image_size": 32,
    "epochs": 4,
    "evaluate_every": 2,
    "batch_size": 4,
    "learning_rate": 2e-3,
    "model": {"base_width": 16, "depth": 2, "norm": "group", "skip_dropout": 0.0},
}
# Single precision adds up 4 × 4 steps in another order; the processor's bfloat16, which rounds every gradient, is off.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def data() -> TrainingData:
    images = np.random.default_rng(0).integers(0, 256, (23, 32, 32, 3), dtype=np.uint8)
    return TrainingData(images[:13], images[13:], make_synthetic_defects(images[13:], seed=0, per_group=1))


def curve(data, group=SINGLE_WORKER, checkpoint=None, **settings):
    """Return a job's reports and states, and its weights."""
    torch.set_num_threads(1)
    job = JobConfig(category="noise", **{**SETTINGS, **settings})
    with mock.patch("msad.training.loop.computes_in_bfloat16", lambda device: False):
        fitted, reports, states = train(job, data, checkpoint=checkpoint, group=group)
    return reports, states, torch.cat([value.flatten() for value in fitted.model.state_dict().values()])


def work(rank, folder, data, jobs, tasks):
    """What each worker of a group does with several jobs, and with whole tasks; leaves their outcomes in a file.

    A job's checkpoint is a file too: tensors that are handed to processes would be one memory for both.
    """
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    outcomes = []
    for settings, file in jobs:
        checkpoint = torch.load(file) if file else None
        try:
            reports, _, weights = curve(data, WorkerGroup(rank, 2), checkpoint, **settings)
            outcomes.append({"reports": reports, "weights": weights})
        except TrainingError as error:
            outcomes.append(str(error))
    for task in tasks:
        told = []
        run(
            task[rank],
            report=lambda metrics, state, told=told: told.append(metrics),
            resume_from=list,
            group=WorkerGroup(rank, 2),
        )
        outcomes.append(told)
    try:
        WorkerGroup(rank, 2).on_every_rank(sum if rank else unportable, [1, 2])
    except RuntimeError as error:
        outcomes.append(str(error))
    torch.save(outcomes, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def unportable(_values):
    class Local(Exception):
        """Of a class that no other process finds."""

    raise Local("it failed here")


@pytest.fixture
def failing(demo, own_cache, tmp_path):
    """For each worker the task that its first one cannot finish, and the one whose images its second one lacks."""
    settings = {**SETTINGS, "epochs": 1, "evaluate_every": 1}
    tasks = [
        Task(
            job_id=name,
            job=JobConfig(category="brick", **settings),
            dataset=demo,
            cache=own_cache,
            directory=JobDirectory(tmp_path / name),
        )
        for name in ("taken", "missing")
    ]
    tasks[0].directory.bundle.mkdir(parents=True)
    (tasks[0].directory.bundle / "notes.txt").write_text("somebody's own")
    return (tasks[0], tasks[0]), (tasks[1], dataclasses.replace(tasks[1], dataset=tmp_path))


def test_group_of_two_trains_as_one_worker_and_fails_as_one(data, failing, tmp_path):
    reports, states, weights = curve(data)
    diverging = {"learning_rate": 1e30, "gradient_clip": 0.0, "schedule": "constant"}
    torch.save(states[0], tmp_path / "state.pt")  # the group goes on from where one worker stood after two epochs
    # Nothing goes back through the head where its loss terms are left out.
    headless = {"architecture": "feature_pyramid", "model": {"width": 8}, "loss_weights": {"cosine": 1.0}, "epochs": 2}
    jobs = [({}, tmp_path / "state.pt"), (diverging, None), (headless, None)]
    multiprocessing.spawn(work, (tmp_path, data, jobs, failing), nprocs=2)
    outcomes = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for trained, failed, headless, taken, missing, elsewhere in outcomes:
        assert headless["reports"][0]["train_loss"] == outcomes[0][2]["reports"][0]["train_loss"]
        assert [metrics["epoch"] for metrics in trained["reports"]] == [4]
        for name in ("train_loss", "loss_l1", "loss_ssim", "loss_gms"):
            assert trained["reports"][0][name] == pytest.approx(reports[1][name], rel=TOLERANCE), name
        # Ranks of noise among noise, which the smallest difference changes.
        assert trained["reports"][0]["validation_score"] == pytest.approx(reports[1]["validation_score"], abs=0.03)
        assert torch.allclose(trained["weights"], weights, atol=1e-3)
        assert "not finite in epoch" in failed
        # Each of them reports what one alone has met: Ray Train's report waits for all.
        assert [metrics.get("epoch") for metrics in taken] == [1, None]
        assert "holds something that is no bundle" in taken[1]["failure"]
        assert len(missing) == 1 and "no category in it" in missing[0]["failure"]
        assert "it failed here" in elsewhere
    (first, why, *_), (second, why_too, *_) = outcomes
    assert torch.equal(first["weights"], second["weights"]) and why == why_too
    assert first["reports"][0]["validation_score"] == second["reports"][0]["validation_score"]


def test_error_of_the_first_worker_is_raised_as_it_is_where_there_is_one():
    def refuse(what):
        raise FloatingPointError(what)

    with pytest.raises(FloatingPointError, match="anomaly maps"):
        SINGLE_WORKER.on_rank_zero(refuse, "anomaly maps")
    assert SINGLE_WORKER.on_rank_zero(max, 1, 2) == 2


@pytest.mark.parametrize(
    ("count", "parts", "weights"),
    [(4, [[0, 1], [2, 3]], [1, 1]), (3, [[0], [1, 2]], [2 / 3, 4 / 3]), (1, [[0], [0]], [0, 2])],
)
def test_parts_of_a_batch_are_all_of_it_and_weigh_as_much_as_they_hold(count, parts, weights):
    for rank, expected in enumerate(parts):
        group = WorkerGroup(rank, 2)
        assert list(range(count))[group.part(count)] == expected
        assert group.weight(count) == pytest.approx(weights[rank])
    assert SINGLE_WORKER.weight(count) == 1 and list(range(count))[SINGLE_WORKER.part(count)] == list(range(count))


def processes_below(pid: int) -> list[tuple[int, str]]:
    """Return the descendants of a process, each with its command line."""
    found, parents = [], {pid}
    table = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            table[int(folder.name)] = parent, (folder / "cmdline").read_bytes().decode(errors="replace")
    while children := {child for child, (parent, _) in table.items() if parent in parents} - parents:
        parents |= children
        found += [(child, table[child][1]) for child in children]
    return found


@pytest.mark.slow
def test_two_ray_train_workers_of_which_one_is_killed_end_as_one_worker(demo, tmp_path, own_cache):
    fixed = {"model/norm": "group", "model/skip_dropout": 0.0, "model/base_width": 8, "model/depth": 2}
    words = ["train", "--dataset", str(demo), "--categories", "brick", "--architectures", "multiscale", "--name", "two"]
    words += ["--workers-per-trial", "2", "--epochs", "8", "--image-size", "32", "--set", "evaluate_every=1"]
    words += [word for path, value in fixed.items() for word in ("--set", f"{path}={value}")]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-m", "msad", *words]
    output = (tmp_path / "output").open("w")
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=output, stderr=output)
    directory = JobDirectory(tmp_path / "sweeps" / "two" / "jobs" / "brick-multiscale-final")
    while len(directory.progress()) < 2:
        assert process.poll() is None, (tmp_path / "output").read_text()
        time.sleep(0.05)
    workers = [pid for pid, name in processes_below(process.pid) if "RayTrainWorker" in name]
    assert len(workers) == 2
    os.kill(max(workers), signal.SIGKILL)
    assert process.wait() == 0, (tmp_path / "output").read_text()

    job = JobConfig.from_dict(directory.read("job"))
    torch.set_num_threads(1)
    _, alone, _ = train(job, load_training_data(job, demo, own_cache))
    together = directory.progress()
    assert [metrics["epoch"] for metrics in together] == [metrics["epoch"] for metrics in alone] == list(range(1, 9))
    tolerance = 0.02 if computes_in_bfloat16(torch.device("cpu")) else TOLERANCE
    for metrics, expected in zip(together, alone, strict=True):
        assert metrics["train_loss"] == pytest.approx(expected["train_loss"], rel=tolerance)
    assert directory.read("test")["image_auroc"] >= 0
