"""A kept sweep from the command line: what may change on resuming, what is refused, and what a new start leaves."""

from __future__ import annotations

import shutil

import pytest
from click.testing import CliRunner

from msad.terminal.cli import msad as commands
from tests.sweep.test_sweep import SMALL, msad, optuna_trials, runs


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--epochs", "3"], "--epochs:"),
        (["--seed", "0", "--pruner", "none", "--set", "learning_rate=0.1"], "--seed, --set, --pruner:"),
        (["--categories", "brick", "--no-report-trials"], "--categories, --report-trials:"),
        (["sweep.yaml"], "the file sweep.yaml:"),
    ],
)
def test_what_cannot_change_on_resuming_is_refused_by_name(words, named):
    done = CliRunner().invoke(commands, ["search", "--resume", "a", *words])
    assert done.exit_code == 2
    assert (
        all(name in done.output for name in named.rstrip(":").split(", ")) and "with the settings that" in done.output
    )


def test_new_sweep_has_nothing_to_start_anew():
    done = CliRunner().invoke(commands, ["search", "--restart-changed"])
    assert done.exit_code == 2 and "give --resume NAME too" in done.output


@pytest.mark.slow
def test_changed_images_are_refused_and_started_anew_and_trials_are_raised(demo, tmp_path):
    shutil.copytree(demo / "brick", tmp_path / "data" / "brick")
    words = ["--dataset", "data", "--architectures", "baseline", "--trials", "2", "--pruner", "none", "--name", "a"]
    done = msad("search", *words, *SMALL, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    before, old = runs(tmp_path, "a"), optuna_trials(tmp_path, "a")

    # More trials: the two that there are stay, and a better one becomes the winner.
    done = msad("search", "--resume", "a", "--trials", "3", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    raised = runs(tmp_path, "a")
    assert len(raised["trial"]) == 3 and {run.info.run_id for run in before["trial"]} < {
        run.info.run_id for run in raised["trial"]
    }
    known = optuna_trials(tmp_path, "a")
    assert len(known) == 3 and all(known[job_id] == trial for job_id, trial in old.items())

    (tmp_path / "data" / "brick" / "train" / "good" / "003.png").unlink()
    done = msad("search", "--resume", "a", "--trials", "4", folder=tmp_path)
    assert done.returncode == 2 and "brick: 1 image removed: brick/train/good/003.png" in done.stderr
    assert "--restart-changed" in done.stderr and optuna_trials(tmp_path, "a") == known
    done = msad("search", "--resume", "a", "--trials", "4", "--restart-changed", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    after, jobs = runs(tmp_path, "a"), tmp_path / "sweeps" / "a" / "jobs"
    assert len(after["study"]) == 1 and len(after["trial"]) == 4
    assert not {run.info.run_id for run in after["trial"]} & {run.info.run_id for run in raised["trial"]}
    assert len({run.data.tags["msad.identity"] for run in after["trial"] + after["study"]}) == 1
    assert after["study"][0].data.tags["msad.identity"] != raised["study"][0].data.tags["msad.identity"]
    trials = optuna_trials(tmp_path, "a")
    assert len(trials) == 7 and all(trials[job_id] == trial for job_id, trial in known.items())
    assert all((jobs / job_id / "result.json").exists() for job_id in trials)
    assert "4" in done.stdout and "brick" in done.stdout
