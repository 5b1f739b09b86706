"""A winner whose trial was a Ray Train job to the end takes that trial's model over; any other is trained again."""

from __future__ import annotations

import dataclasses
import json

import pytest
from PIL import Image

from msad.bundle import bundle_files
from msad.cluster import job
from msad.cluster.workers.final_training import train_winner
from msad.cluster.workers.task import Task
from msad.report.job_figures import final_training
from msad.workspace import Workspace


@pytest.fixture
def tasks(bundle, tmp_path):
    """A winner that has nothing yet, and the trial that has left its model."""
    workspace = Workspace(tmp_path / "sweep")
    words = {"job": bundle.job, "dataset": tmp_path, "cache": tmp_path}
    winner, trial = (
        Task(job_id=name, directory=workspace.job(name), **words) for name in ("brick-final", "brick-0003")
    )
    trial.directory.write("job", bundle.job.to_dict())
    trial.directory.append_progress({"epoch": 1, "validation_score": 0.5})
    dataclasses.replace(bundle, provenance={"job_id": trial.job_id}).save(trial.directory.bundle)
    (trial.directory.path / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(trial.directory.path / "pictures" / "training.png")
    trial.directory.write("result", {"epoch": 1, "score": 0.5, "executor": "train"})
    return winner, trial


def test_model_of_a_trial_becomes_the_winners_and_nothing_is_trained(tasks, tmp_path, monkeypatch):
    winner, trial = tasks
    monkeypatch.setattr(job, "train_job", lambda *_words, **_more: pytest.fail("it was trained again"))
    winner.directory.write("failure", {"reason": "of an earlier attempt"})
    (winner.directory.bundle).mkdir()  # a copy that was not finished
    train_winner(winner.to_dict(), str(tmp_path / "train"), trial.to_dict())
    made, kept = winner.directory, trial.directory
    assert made.read("result") == {**kept.read("result"), "trial": "brick-0003"} and made.read("failure") is None
    assert made.progress() == kept.progress() and (made.path / "pictures" / "training.png").is_file()
    weights = [folder.bundle / "model.safetensors" for folder in (made, kept)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    bundle_files.verify(made.bundle)
    provenance = json.loads((made.bundle / "bundle.json").read_text())["provenance"]
    assert (provenance["job_id"], provenance["trial"]) == ("brick-final", "brick-0003")
    assert final_training(made.read("result")) == "none: the model of brick-0003, which was a Ray Train job to the end"


def test_winner_without_such_a_trial_is_trained(tasks, tmp_path, monkeypatch):
    winner, _ = tasks
    trained = []
    monkeypatch.setattr(job, "train_job", lambda values, *_words, **_more: trained.append(values["job_id"]))
    train_winner(winner.to_dict(), str(tmp_path / "train"))
    assert trained == ["brick-final"] and final_training({"epoch": 1}).startswith("trained again")
