"""Parts of a running sweep are killed from outside: it goes on, or is resumed, without a loss or a duplicate."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import psutil
import pytest
from mlflow import MlflowClient

from tests.faults.breakable import RAY_WORKERS, MlflowServer, TwoNodes, descendants, environment, kill

pytestmark = pytest.mark.slow
STUDY = "brick/faulty:Faulty"
SMALL = ["--image-size", "32", "--architectures", "faulty:Faulty", "--categories", "brick", "--pruner", "none"]


class Sweep:
    """A sweep of slow trials in a process of its own, and what it has left so far."""

    def __init__(self, folder: Path, *words: str, variables: dict[str, str] | None = None) -> None:
        self.folder, self.jobs = folder, folder / "sweeps" / "first" / "jobs"
        self._variables, self._log = environment() | (variables or {}), folder / "log"
        self._start("--name", "first", *SMALL, *words)

    def _start(self, *words: str) -> None:
        with self._log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "msad", "search", *words],
                cwd=self.folder,
                env=self._variables,
                stdout=log,
                stderr=log,
            )

    def resume(self, *words: str) -> None:
        self._start("--resume", "first", *words)

    def wait_for(self, what: Callable[[], object]) -> None:
        deadline = time.monotonic() + 300
        while not what():
            assert self.process.poll() is None and time.monotonic() < deadline, self.output()
            time.sleep(0.1)

    def end(self) -> int:
        return self.process.wait(timeout=500)

    def output(self) -> str:
        return self._log.read_text()

    def epochs(self, job: int | str) -> list[int]:
        """Return the epochs of a trial, or of the `final` training, in order; with those twice that were done twice."""
        name = job if isinstance(job, str) else f"{job:04d}"
        file = self.jobs / f"brick-faulty.Faulty-{name}" / "progress.jsonl"
        lines = file.read_text().split("\n") if file.exists() else []
        return [json.loads(line)["epoch"] for line in lines if line.endswith("}")]

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        storage = f"sqlite:///{self.folder}/sweeps/first/optuna.db"
        return optuna.load_study(storage=storage, study_name=STUDY).trials

    def check(self, trials: int, epochs: int, uri: str | None = None, seeds: int = 0) -> None:
        """See that every trial is complete, with each epoch once in Optuna, in MLflow, and (but one) on the disk.

        `seeds` of a winner have a run each.
        """
        client = MlflowClient(uri or f"sqlite:///{self.folder}/mlflow.db")
        experiment = client.get_experiment_by_name("first").experiment_id
        runs = client.search_runs([experiment])
        by_id = {run.data.tags["msad.trial_id"]: run for run in runs}
        assert len(by_id) == len(runs) == trials + 2 + seeds, "trials, the study and the sweep have a run each"
        every = list(range(1, epochs + 1))
        assert [trial.state.name for trial in self.trials()] == ["COMPLETE"] * trials
        for trial in self.trials():
            assert sorted(trial.intermediate_values) == every
            run = by_id[trial.user_attrs["job_id"]]
            steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")]
            assert run.info.status == "FINISHED" and steps == every
            done = self.epochs(trial.number)
            assert done.count(1) == 1 and sorted(set(done)) == every, f"it began anew: {done}"


def slow(demo: Path, trials: int, epochs: int) -> list[str]:
    words = ["--dataset", str(demo), "--trials", str(trials), "--epochs", str(epochs)]
    return [*words, "--set", "model/fault=none", "--set", "model/pause=0.25"]


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


def test_trials_of_a_lost_node_go_on_elsewhere_from_their_checkpoints(demo, tmp_path):
    with TwoNodes() as nodes:
        shared = ["--address", nodes.address, "--storage", str(tmp_path / "sweeps"), "--executor", "train"]
        sweep = Sweep(tmp_path, *slow(demo, 2, 40), *shared)
        sweep.wait_for(lambda: len(sweep.epochs(0)) >= 3 and len(sweep.epochs(1)) >= 3)
        nodes.lose()
        assert sweep.end() == 0, sweep.output()
    sweep.check(2, 40)


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


def test_what_a_lost_server_misses_is_delivered_on_its_return_or_on_resume(demo, tmp_path):
    server = MlflowServer(tmp_path / "server")
    server.start()
    try:
        sweep = Sweep(tmp_path, *slow(demo, 4, 8), "--executor", "direct", "--tracking-uri", server.uri)
        sweep.wait_for(lambda: sweep.epochs(0))
        server.kill()
        sweep.wait_for(lambda: "tracking failed and will be tried again, training goes on" in sweep.output())
        sweep.wait_for(lambda: len(sweep.epochs(0)) == 8)
        server.start()
        sweep.wait_for(lambda: "tracking works again" in sweep.output())
        server.kill()
        assert sweep.end() == 1
        assert "--resume first" in sweep.output(), sweep.output()
        assert [trial.state.name for trial in sweep.trials()] == ["COMPLETE"] * 4
        server.start()
        sweep.resume()
        assert sweep.end() == 0, sweep.output()
        sweep.check(4, 8, server.uri)
    finally:
        server.kill()


def queue(folder: Path, *faults: str) -> None:
    """Put the faults of a sweep's first trials into its study, before it is started."""
    (folder / "sweeps" / "first").mkdir(parents=True)
    study = optuna.create_study(
        storage=f"sqlite:///{folder}/sweeps/first/optuna.db", study_name=STUDY, direction="maximize"
    )
    for fault in faults:
        study.enqueue_trial({"model/fault": fault})


def test_trial_that_hangs_is_ended_and_the_next_one_runs(demo, tmp_path):
    queue(tmp_path, "hang", "none")
    words = ["--dataset", str(demo), "--trials", "2", "--executor", "direct", "--concurrency", "1"]
    sweep = Sweep(tmp_path, *words, "--trial-timeout", "1.5")
    assert sweep.end() == 0, sweep.output()
    hang, other = sweep.trials()
    assert (hang.state.name, other.state.name) == ("FAIL", "COMPLETE")
    assert hang.user_attrs["failure"].startswith("it hung in _hang (faulty.py:")
    assert sorted(hang.intermediate_values) == [1, 2]


def test_trial_that_takes_all_memory_is_ended_by_ray_and_told_so(demo, tmp_path):
    """The node is said to be full 6 GB from now, of which a sweep and Ray take about 2."""
    memory = psutil.virtual_memory()
    if memory.available < 8e9:
        pytest.skip("too little memory is free on this machine")
    threshold = (memory.total - memory.available + 6e9) / memory.total
    queue(tmp_path, "hoard", "none")
    words = ["--dataset", str(demo), "--trials", "2", "--executor", "direct", "--concurrency", "1"]
    sweep = Sweep(tmp_path, *words, variables={"RAY_memory_usage_threshold": f"{threshold:.4f}"})
    assert sweep.end() == 0, sweep.output()
    hoard, other = sweep.trials()
    assert (hoard.state.name, other.state.name) == ("FAIL", "COMPLETE")
    assert "its node was short of memory, and Ray ended it" in hoard.user_attrs["failure"]
