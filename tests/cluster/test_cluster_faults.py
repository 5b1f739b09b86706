"""Parts of a running sweep are killed from outside: it goes on, or is resumed, without a loss or a duplicate."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import optuna
import psutil
import pytest
from mlflow import MlflowClient

from tests.faults.breakable import RAY_WORKERS, MlflowServer, TwoNodes, descendants, environment, kill
from tests.faults.search import SEARCH, SMALL, queue, trials

MOST_SECONDS = 900  # for what takes one minute: a busy machine is slow


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """End what a test that failed has left."""
    yield
    for process in Sweep.processes:
        process.kill()
        process.wait()


@pytest.fixture
def go(tmp_path, monkeypatch) -> Path:
    """The file that trials with the fault `wait` wait for in their third epoch of four, on whatever node."""
    monkeypatch.setenv("FAULTY_GO", str(tmp_path / "go"))
    return tmp_path / "go"


class Sweep:
    """A search in a process of its own, or another command, and what it has left so far."""

    processes: ClassVar[list[subprocess.Popen]] = []

    def __init__(
        self, folder: Path, *words: str, command: Sequence[str] = SEARCH, variables: dict[str, str] | None = None
    ) -> None:
        self.folder, self.jobs = folder, folder / "sweeps" / "first" / "jobs"
        self._variables, self._log = environment() | (variables or {}), folder / "log"
        self._start(*command, "--name", "first", *words)

    def _start(self, *words: str) -> None:
        with self._log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "msad", *words],
                cwd=self.folder,
                env=self._variables,
                stdout=log,
                stderr=log,
            )
        self.processes.append(self.process)

    def resume(self, *words: str) -> None:
        self._start("search", "--resume", "first", *words)

    def wait_for(self, what: Callable[[], object]) -> None:
        deadline = time.monotonic() + MOST_SECONDS
        while not what():
            assert self.process.poll() is None and time.monotonic() < deadline, self.output()
            time.sleep(0.1)

    def end(self) -> int:
        return self.process.wait(timeout=MOST_SECONDS)

    def output(self) -> str:
        return self._log.read_text()

    def epochs(self, job: int | str) -> list[int]:
        """Return the epochs of a trial, or of the `final` training, in order; with those twice that were done twice."""
        name = job if isinstance(job, str) else f"{job:04d}"
        file = self.jobs / f"brick-faulty.Faulty-{name}" / "progress.jsonl"
        lines = file.read_text().split("\n") if file.exists() else []
        return [json.loads(line)["epoch"] for line in lines if line.endswith("}")]

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        return trials(self.folder, "first")

    def check(self, trials: int, epochs: int, uri: str | None = None, seeds: int = 0) -> None:
        """See that every trial is complete, with each epoch once in Optuna, in MLflow, and (but one) on the disk.

        `seeds` of a winner have a run each.
        """
        runs = self.runs(uri)
        assert len(runs) == trials + 2 + seeds, "trials, the study and the sweep have a run each"
        every = list(range(1, epochs + 1))
        assert [trial.state.name for trial in self.trials()] == ["COMPLETE"] * trials
        for trial in self.trials():
            assert sorted(trial.intermediate_values) == every
            assert runs[trial.user_attrs["job_id"]] == ("FINISHED", every)
            self.check_epochs(trial.number, epochs)

    def check_epochs(self, job: int | str, epochs: int) -> None:
        """See that a job has done each epoch, and has not begun anew."""
        done = self.epochs(job)
        assert done.count(1) == 1 and sorted(set(done)) == list(range(1, epochs + 1)), f"it began anew: {done}"

    def runs(self, uri: str | None = None) -> dict[str, tuple[str, list[int]]]:
        """Return of each job its status in MLflow, and the steps at which its loss was logged."""
        client = MlflowClient(uri or f"sqlite:///{self.folder}/mlflow.db")
        runs = client.search_runs([client.get_experiment_by_name("first").experiment_id])
        found = {
            run.data.tags["msad.trial_id"]: (
                run.info.status,
                [metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")],
            )
            for run in runs
        }
        assert len(found) == len(runs), "a job has two runs"
        return found


def slow(demo: Path, trials: int, epochs: int) -> list[str]:
    words = ["--dataset", str(demo), "--trials", str(trials), "--epochs", str(epochs)]
    return [*words, "--set", "model/fault=none", "--set", "model/pause=0.25"]


@pytest.mark.slow
def test_killed_workers_controllers_and_sweep_cost_a_train_job_nothing(demo, tmp_path):
    sweep = Sweep(tmp_path, *slow(demo, 2, 12), "--executor", "train", "--concurrency", "1", "--final-seeds", "2")
    for done, title in ((2, "ray::RayTrainWorker"), (4, "ray::ImplicitFunc")):  # the latter holds the controller too
        sweep.wait_for(lambda done=done: len(sweep.epochs(0)) >= done)
        victims = descendants(sweep.process.pid, title)
        assert victims, descendants(sweep.process.pid, "ray::")
        kill(min(victims))
    sweep.wait_for(lambda: len(sweep.epochs(1)) >= 3)
    workers, others = descendants(sweep.process.pid, *RAY_WORKERS), descendants(sweep.process.pid, "")
    first = sweep.trials()[0]
    result = (sweep.jobs / first.user_attrs["job_id"] / "result.json").stat().st_mtime_ns
    sweep.process.kill()
    sweep.process.wait()
    for kind, limit in ((workers, 60), (others, 180)):  # Ray's agents look for their head for about a minute
        deadline = time.monotonic() + limit
        while left := [title for pid, title in kind.items() if Path(f"/proc/{pid}/exe").exists()]:
            assert time.monotonic() < deadline, f"Ray's processes go on without their sweep: {left}"
            time.sleep(0.2)
    sweep.resume()
    second = "final-seed1"  # the first one's model is the trial's
    sweep.wait_for(lambda: len(sweep.epochs(second)) >= 2)
    kill(min(descendants(sweep.process.pid, "ray::TrainController")))
    assert sweep.end() == 0, sweep.output()
    sweep.check(2, 12, seeds=2)
    assert sweep.epochs(second).count(1) == 1, "the winner's training began anew"
    assert sweep.trials()[0] == first, "what Optuna knew has changed"
    assert (sweep.jobs / first.user_attrs["job_id"] / "result.json").stat().st_mtime_ns == result


def test_controller_that_is_killed_costs_a_final_training_nothing(demo, tmp_path, go):
    words = ["--dataset", str(demo), "--set", "model/fault=wait"]
    sweep = Sweep(tmp_path, *words, command=["train", *SMALL])
    sweep.wait_for(lambda: len(sweep.epochs("final")) == 2)
    kill(min(descendants(sweep.process.pid, "ray::TrainController")))
    go.touch()
    assert sweep.end() == 0, sweep.output()
    sweep.check_epochs("final", 4)
    assert ("FINISHED", [1, 2, 3, 4]) in sweep.runs().values()


def test_trials_of_a_lost_node_go_on_elsewhere_from_their_checkpoints(demo, tmp_path, go):
    with TwoNodes() as nodes:
        words = ["--dataset", str(demo), "--trials", "2", "--set", "model/fault=wait", "--executor", "train"]
        sweep = Sweep(tmp_path, *words, "--address", nodes.address, "--storage", str(tmp_path / "sweeps"))
        sweep.wait_for(lambda: len(sweep.epochs(0)) == len(sweep.epochs(1)) == 2)
        nodes.lose()
        go.touch()
        assert sweep.end() == 0, sweep.output()
    assert "its node was lost; it is tried again, from its last checkpoint" in sweep.output()
    sweep.check(2, 4)


@pytest.mark.slow
def test_sweep_whose_own_node_is_lost_ends_and_is_resumed_on_another_cluster(demo, tmp_path):
    with TwoNodes() as nodes:
        place = ["--storage", str(tmp_path / "sweeps"), "--executor", "direct"]
        sweep = Sweep(tmp_path, *slow(demo, 2, 20), "--address", nodes.address, *place)
        sweep.wait_for(lambda: len(sweep.epochs(0)) >= 3)
        nodes.lose_head()
        assert sweep.end() == 130, sweep.output()
    assert "Ray's node on this machine has ended" in sweep.output()
    with TwoNodes() as nodes:
        sweep.resume("--address", nodes.address)
        assert sweep.end() == 0, sweep.output()
    sweep.check(2, 20)


@pytest.fixture
def server(tmp_path) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path / "server")
    server.start()
    yield server
    server.kill()


FAILED = "tracking failed and will be tried again, training goes on"


def test_what_a_lost_server_misses_is_delivered_on_its_return(demo, tmp_path, go, server):
    queue(tmp_path, "first", "none", "wait")
    words = ["--dataset", str(demo), "--trials", "2", "--executor", "direct", "--concurrency", "1"]
    sweep = Sweep(tmp_path, *words, "--tracking-uri", server.uri)
    sweep.wait_for(lambda: sweep.epochs(0))
    server.kill()
    sweep.wait_for(lambda: FAILED in sweep.output() and len(sweep.epochs(1)) == 2)
    server.start()
    sweep.wait_for(lambda: "tracking works again" in sweep.output())
    go.touch()
    assert sweep.end() == 0, sweep.output()
    sweep.check(2, 4, server.uri)


@pytest.mark.slow
def test_what_a_lost_server_misses_is_delivered_on_resume(demo, tmp_path, go, server):
    queue(tmp_path, "first", "none", "wait")
    words = ["--dataset", str(demo), "--trials", "2", "--executor", "direct", "--concurrency", "1"]
    sweep = Sweep(tmp_path, *words, "--tracking-uri", server.uri)
    sweep.wait_for(lambda: len(sweep.epochs(1)) == 2)
    server.kill()
    go.touch()
    assert sweep.end() == 1
    assert FAILED in sweep.output() and "--resume first" in sweep.output(), sweep.output()
    assert [trial.state.name for trial in sweep.trials()] == ["COMPLETE"] * 2
    server.start()
    sweep.resume()
    assert sweep.end() == 0, sweep.output()
    sweep.check(2, 4, server.uri)


def test_trial_that_hangs_is_ended_and_the_next_one_runs(demo, tmp_path):
    words = ["--dataset", str(demo), "--trials", "2", "--executor", "direct", "--concurrency", "1"]
    for minutes in ("0.25", "2", "10"):  # on a busy machine an epoch may take longer than the shortest: no hang is told
        folder = tmp_path / minutes
        queue(folder, "first", "hang", "none")
        sweep = Sweep(folder, *words, "--trial-timeout", minutes)
        ended, (hang, other) = sweep.end(), sweep.trials()
        if hang.intermediate_values.keys() == {1, 2} and other.state.name == "COMPLETE":
            break
    assert ended == 0, sweep.output()
    assert (hang.state.name, other.state.name) == ("FAIL", "COMPLETE")
    assert hang.user_attrs["failure"].startswith("it hung in _hang (faulty.py:")
    assert sorted(hang.intermediate_values) == [1, 2]


@pytest.mark.slow
def test_trial_that_takes_all_memory_is_ended_by_ray_and_told_so(demo, tmp_path):
    """The node is said to be full 6 GB from now, of which a sweep and Ray take about 2."""
    memory = psutil.virtual_memory()
    if memory.available < 8e9:
        pytest.skip("too little memory is free on this machine")
    threshold = (memory.total - memory.available + 6e9) / memory.total
    queue(tmp_path, "first", "hoard", "none")
    words = ["--dataset", str(demo), "--trials", "2", "--executor", "direct", "--concurrency", "1"]
    sweep = Sweep(tmp_path, *words, variables={"RAY_memory_usage_threshold": f"{threshold:.4f}"})
    assert sweep.end() == 0, sweep.output()
    hoard, other = sweep.trials()
    assert (hoard.state.name, other.state.name) == ("FAIL", "COMPLETE")
    assert "its node was short of memory, and Ray ended it" in hoard.user_attrs["failure"]
