"""Trials that go wrong, for real, in the middle of a sweep: each ends with its reason, and the others do not notice."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.faults.breakable import environment
from tests.faults.search import SEARCH, queue, trials

JOB = "brick-faulty.Faulty-{:04d}"


def search(demo: Path, folder: Path, sweep: str, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "msad", *SEARCH, "--dataset", str(demo), "--name", sweep, *words],
        cwd=folder,
        env=environment(folder / "once"),
        capture_output=True,
        text=True,
        timeout=500,
    )


def history(folder: Path, sweep: str, job_id: str) -> tuple[str, list[int]]:
    """Return the status of a job's one MLflow run, and the steps at which its loss was logged."""
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(sweep).experiment_id
    (run,) = client.search_runs([experiment], filter_string=f"tags.`msad.trial_id` = '{job_id}'")
    return run.info.status, [metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")]


@pytest.fixture(scope="module")
def swept(demo, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """A sweep with a trial for each fault, one after another in the same warm workers, and its process."""
    folder = tmp_path_factory.mktemp("faults")
    queue(folder, "faults", "once", "nan", "memory", "crash", "none")
    done = search(demo, folder, "faults", "--trials", "5", "--executor", "direct")
    return folder, done


def test_sweep_goes_on_past_every_fault_and_ends_well(swept):
    folder, done = swept
    assert done.returncode == 0, done.stderr
    states = {trial.params["model/fault"]: trial.state.name for trial in trials(folder, "faults")}
    assert states == {
        "once": "COMPLETE",
        "nan": "PRUNED",  # to Optuna, which would learn nothing from a failure
        "memory": "PRUNED",
        "crash": "FAIL",
        "none": "COMPLETE",
    }


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (1, r"the loss is not finite in epoch 3"),
        (2, r"out of memory on cpu with batch_size 2, image_size 32 .*lower one of them"),
        (3, r"its worker crashed, and again when tried anew: its process was killed, as the system does"),
    ],
)
def test_failed_trial_tells_its_reason(swept, number, reason):
    folder, done = swept
    failure = trials(folder, "faults")[number].user_attrs["failure"]
    assert re.search(reason, failure), failure
    assert f"{JOB.format(number)}: failed: {failure.splitlines()[0][:40]}" in done.stderr
    assert history(folder, "faults", JOB.format(number))[0] == "FAILED"


def test_worker_killed_in_mid_epoch_goes_on_from_its_checkpoint_in_the_same_run(swept):
    folder, _ = swept
    status, steps = history(folder, "faults", JOB.format(0))
    assert (folder / "once").exists(), "it was never killed"
    assert status == "FINISHED" and steps == [1, 2, 3, 4]
    lines = (folder / "sweeps" / "faults" / "jobs" / JOB.format(0) / "progress.jsonl").read_text().split("\n")
    assert len([line for line in lines if line]) == 4, "it began anew"
    assert sorted(trials(folder, "faults")[0].intermediate_values) == [1, 2, 3, 4]
