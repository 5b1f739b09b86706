"""A sweep on two nodes while workers, a node and the MLflow server are killed at random: all is there, and once."""

from __future__ import annotations

import collections
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from mlflow import MlflowClient

from tests.faults.breakable import RAY_WORKERS, MlflowServer, TwoNodes, descendants, environment, kill

TRIALS, EPOCHS = 12, 8  # of each of two studies
STUDIES = ("brick/faulty:Faulty", "gear/faulty:Faulty")


def command(demo: Path, folder: Path, *words: str) -> list[str]:
    """Return a search, after queuing the same configurations whoever runs it."""
    (folder / "sweeps" / "chaos").mkdir(parents=True)
    for name in STUDIES:
        study = optuna.create_study(
            storage=f"sqlite:///{folder}/sweeps/chaos/optuna.db", study_name=name, direction="maximize"
        )
        rates = random.Random(name)
        for _ in range(TRIALS):
            study.enqueue_trial({"learning_rate": 10 ** rates.uniform(-4, -2)})
    fixed = ["--set", "model/fault=none", "--epochs", str(EPOCHS), "--image-size", "32"]
    names = ["--architectures", "faulty:Faulty", "--categories", "brick,gear", "--trials", str(TRIALS)]
    return [
        *(sys.executable, "-m", "msad", "search", "--dataset", str(demo), "--name", "chaos"),
        *(*names, *fixed, "--executor", "direct", *words),
    ]


def trials(folder: Path) -> dict[tuple[str, int], optuna.trial.FrozenTrial]:
    storage = f"sqlite:///{folder}/sweeps/chaos/optuna.db"
    return {
        (name, trial.number): trial
        for name in STUDIES
        for trial in optuna.load_study(storage=storage, study_name=name).trials
    }


class Chaos:
    """Kills something every few seconds, by a seed, and brings back what does not come back by itself."""

    def __init__(self, nodes: TwoNodes, server: MlflowServer, root: int, seed: int = 0) -> None:
        self._nodes, self._server, self._root = nodes, server, root
        self._random = random.Random(seed)
        self._again: list[tuple[float, str]] = []  # when the node or the server comes back
        self.killed: collections.Counter[str] = collections.Counter()

    def step(self) -> None:
        """Wait a little, then kill something."""
        self._pause(self._random.uniform(6, 12))
        what = self._random.choices(["worker", "node", "server"], [6, 2, 2])[0]
        away = {name for _, name in self._again}
        if what in away:
            return
        if what == "worker":
            workers = sorted(descendants(self._root, *RAY_WORKERS))
            if not workers:
                return
            kill(self._random.choice(workers))
        elif what == "node":
            self._nodes.lose()
        else:
            self._server.kill()
        if what != "worker":
            self._again.append((time.monotonic() + self._random.uniform(10, 40), what))
        self.killed[what] += 1
        print(f"{time.strftime('%X')} killed: {what}", flush=True)

    def calm(self) -> None:
        """Bring back what is away."""
        for _, name in self._again:
            self._restore(name)
        self._again = []

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for entry in [entry for entry in self._again if entry[0] < time.monotonic()]:
                self._again.remove(entry)
                self._restore(entry[1])
            time.sleep(0.2)

    def _restore(self, name: str) -> None:
        self._nodes.add() if name == "node" else self._server.start()
        print(f"{time.strftime('%X')} back: {name}", flush=True)


@pytest.fixture
def parts(tmp_path):
    """Two nodes and a server, all of them running."""
    server = MlflowServer(tmp_path / "server")
    server.start()
    try:
        with TwoNodes() as nodes:
            yield nodes, server
    finally:
        server.kill()


def leaderboard(folder: Path, *words: str) -> dict[str, dict]:
    done = subprocess.run(
        [sys.executable, "-m", "msad", "compare", "chaos", "--json", "-", *words],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return {row["category"]: row for row in json.loads(done.stdout)}


@pytest.mark.slow
def test_sweep_under_chaos_ends_as_an_undisturbed_one(demo, tmp_path, parts):
    nodes, server = parts
    calm, wild = tmp_path / "calm", tmp_path / "wild"
    for folder in (calm, wild):
        folder.mkdir()
    words = ["--address", nodes.address, "--storage", str(calm / "sweeps"), "--pruner", "none"]
    done = subprocess.run(command(demo, calm, *words), cwd=calm, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    words = ["--address", nodes.address, "--storage", str(wild / "sweeps"), "--tracking-uri", server.uri]
    words += ["--set", "model/pause=0.6"]  # a trial takes some seconds, and learns the same
    with (wild / "log").open("w") as log:
        process = subprocess.Popen(command(demo, wild, *words), cwd=wild, env=environment(), stdout=log, stderr=log)
    while process.poll() is None and not list((wild / "sweeps/chaos/jobs").glob("*/progress.jsonl")):
        time.sleep(0.5)
    chaos, began = Chaos(nodes, server, os.getpid()), time.monotonic()
    while process.poll() is None and not all(trial.state.is_finished() for trial in trials(wild).values()):
        chaos.step()
    seconds = time.monotonic() - began
    chaos.calm()
    assert process.wait(timeout=400) == 0, (wild / "log").read_text()

    ours, theirs = trials(wild), trials(calm)
    states = collections.Counter(trial.state.name for trial in ours.values())
    print(f"chaos for {seconds:.0f} s: killed {dict(chaos.killed)}; trials {dict(states)}")
    assert set(ours) == set(theirs) and len(ours) == 2 * TRIALS
    assert all(trial.state.is_finished() for trial in ours.values())
    for key, trial in ours.items():
        assert trial.params == theirs[key].params
        steps, known = trial.intermediate_values, theirs[key].intermediate_values
        assert sorted(steps) == list(range(1, len(steps) + 1)), f"{key}: an epoch is missing"
        common = sorted(set(steps) & set(known))
        assert [steps[step] for step in common] == pytest.approx([known[step] for step in common], abs=1e-6)
        if trial.state.name == "COMPLETE":
            assert trial.value == pytest.approx(theirs[key].value, abs=1e-6)
        if trial.state.name == "FAIL":
            assert "its worker crashed" in trial.user_attrs["failure"]

    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("chaos").experiment_id
    runs = client.search_runs([experiment], max_results=1000)
    names = [run.data.tags["msad.trial_id"] for run in runs]
    assert len(names) == len(set(names)), "a trial has two runs"
    by_id = {run.data.tags["msad.trial_id"]: run for run in runs}
    status = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}
    for trial in ours.values():
        run = by_id[trial.user_attrs["job_id"]]
        assert run.info.status == status[trial.state.name]
        logged = [metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")]
        assert logged == sorted(trial.intermediate_values)

    ours, theirs = leaderboard(wild, "--tracking-uri", server.uri), leaderboard(calm)
    for category in ("brick", "gear"):
        one, other = ours[category], theirs[category]
        if same := one["validation_score"] == pytest.approx(other["validation_score"], abs=1e-6):
            assert one["image_auroc"] == pytest.approx(other["image_auroc"], abs=1e-6)
        print(f"{category}: {'the same winner' if same else 'another winner'} as undisturbed")
    assert chaos.killed["worker"] >= 5 and chaos.killed["node"] and chaos.killed["server"]
