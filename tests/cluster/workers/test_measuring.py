"""What a winner that is trained leaves when it meets the test split, and what is told of it."""

from __future__ import annotations

import io
import json
import shutil

import pytest
from rich.console import Console

from msad.cluster.workers.measuring import measure_winner
from msad.cluster.workers.task import Task
from msad.report.job_figures import unmeasured
from msad.report.live import LiveView
from msad.report.reporter import Reporter
from msad.report.study_runs import StudyRuns
from msad.search.study import Study
from msad.sweep.outcome import Outcome
from msad.workspace import Workspace
from tests.sweep.test_sweep import SMALL, msad, runs

RESULT = {"epoch": 2, "threshold": 0.5, "parameters": 9, "score": 0.8, "image_auroc": 0.9, "pixel_ap": 0.4}


@pytest.fixture
def trained(demo, category, bundle, tmp_path):
    """The task of a winner that is trained, on a copy of the demo that may be spoilt."""
    root = tmp_path / "data"
    shutil.copytree(demo / category, root / category)
    directory = Workspace(tmp_path / "sweep").job("final")
    bundle.save(directory.bundle)
    directory.write("result", RESULT)
    return Task(job_id="final", job=bundle.job, dataset=root, cache=tmp_path / "cache", directory=directory)


def test_winner_whose_test_image_cannot_be_read_keeps_its_model_and_is_measured_later(trained, category):
    image = trained.dataset / category / "test" / "good" / "000.png"
    whole = image.read_bytes()
    image.write_bytes(whole[:60])
    measure_winner(trained.to_dict(), None)
    final = trained.directory
    assert final.read("failure") is None and final.read("test") is None
    assert "000.png" in unmeasured(final)
    assert "Not measured: " in (final.bundle / "MODEL_CARD.md").read_text()
    image.write_bytes(whole)
    measure_winner(trained.to_dict(), None)
    assert unmeasured(final) is None and 0 <= final.read("test")["image_auroc"] <= 1
    assert "Not measured" not in (final.bundle / "MODEL_CARD.md").read_text()


def test_winner_with_a_damaged_bundle_has_failed(trained):
    (trained.directory.bundle / "model.safetensors").write_bytes(b"")
    measure_winner(trained.to_dict(), None)
    assert "damaged" in trained.directory.read("failure")["reason"]


def test_test_split_of_defective_images_alone_is_told_without_nan(trained, category, tmp_path):
    shutil.rmtree(trained.dataset / category / "test" / "good")
    measure_winner(trained.to_dict(), None)
    study = Study(trained.job, {}, 0, "sqlite://", "none")
    text, tracker = io.StringIO(), _Tracker()
    view = LiveView([study], 1, Console(file=text, width=200))
    workspace = Workspace(tmp_path / "other")
    reporter = Reporter(workspace, view, StudyRuns(workspace, tracker, lambda _job: {}))
    shutil.copytree(trained.directory.path, workspace.final(study.id).path)
    reporter.finals.ended(study)
    assert "no good test images, so no AUROC; " in text.getvalue() and "nan" not in text.getvalue()
    (record,) = tracker.records
    card = (trained.directory.bundle / "MODEL_CARD.md").read_text()
    assert record.status == "complete" and record.register_as == category
    assert "nan" not in record.note(_Pages()).split() and " nan" not in card


def test_outcome_without_a_measurement_is_not_ok():
    assert not Outcome("a", "uri", {}, 0, None, {"bolt/baseline": "a.png: damaged"}, "msad search --resume a").ok


class _Tracker:
    def __init__(self) -> None:
        self.records = []
        self.put = self.records.append


class _Pages:
    leaderboard = "#"

    def run(self, *_words: str) -> str:
        return "#"

    def run_id(self, *_words: str) -> str:
        return "0"


@pytest.mark.slow
def test_sweep_with_a_damaged_test_image_delivers_and_resume_measures(demo, category, tmp_path):
    shutil.copytree(demo / category, tmp_path / "data" / category)
    image = tmp_path / "data" / category / "test" / "good" / "000.png"
    whole = image.read_bytes()
    image.write_bytes(whole[:60])
    words = ("train", "--dataset", "data", "--architectures", "baseline", "--name", "a", "--json", "outcome.json")
    done = msad(*words, *SMALL, folder=tmp_path)
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    assert (
        done.returncode == 1
        and outcome["failed_studies"] == {}
        and list(outcome["unmeasured"]) == [f"{category}/baseline"]
    )
    (study,) = runs(tmp_path, "a")["study"]
    assert study.data.tags["msad.status"] == "complete" and "000.png" in study.data.tags["msad.reason"]
    assert msad("pull", study.info.run_id, "--to", "model", folder=tmp_path).returncode == 0
    image.write_bytes(whole)
    resumed = msad(*outcome["resume"].split()[1:], folder=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    (study,) = runs(tmp_path, "a")["study"]
    assert 0 <= study.data.metrics["test_image_auroc"] <= 1 and not study.data.tags["msad.reason"]
    assert msad("pull", study.info.run_id, "--to", "later", folder=tmp_path).returncode == 0
    assert "Measured once" in (tmp_path / "later" / "MODEL_CARD.md").read_text()
