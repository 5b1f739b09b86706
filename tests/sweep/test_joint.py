"""One network for two products through a real sweep: search, winners, test, compare, pull, predict, report, resume."""

from __future__ import annotations

import json

import pytest
from mlflow import MlflowClient

from msad.bundle.bundles import Bundle
from msad.terminal.leaderboard_text import format_leaderboard
from msad.tracking.compare import leaderboard
from msad.tracking.model_store import pull
from msad.tracking.speed import speed_table
from tests.sweep.test_sweep import msad

SMALL = ["--image-size", "32", "--epochs", "1", "--set", "model/base_width=4"]
JOINT = "baseline (joint)"


@pytest.fixture(scope="module")
def swept(demo, tmp_path_factory):
    """The folder of a search of two joint trials, beside a separate study of one of the products."""
    folder = tmp_path_factory.mktemp("swept")
    words = ["--dataset", str(demo), "--joint", "gear,brick", "--categories", "gear", "--architectures", "baseline"]
    done = msad("search", *words, "--trials", "2", "--name", "both", *SMALL, folder=folder)
    assert done.returncode == 0, done.stderr
    assert "both: 2 studies of 2 trials" in done.stderr
    return folder


@pytest.fixture(scope="module")
def uri(swept):
    return f"sqlite:///{swept / 'mlflow.db'}"


def test_every_product_has_a_row_a_tested_model_and_a_champion_of_its_own(swept, uri):
    table = leaderboard("both", uri)
    rows = {(row.category, row.architecture): row for row in table.itertuples()}
    assert set(rows) == {("brick", JOINT), ("gear", JOINT), ("gear", "baseline")}
    assert set(table["status"]) == {"complete"} and set(table["trials"]) == {2}
    assert table[["validation_score", "image_auroc", "latency_ms", "parameters"]].notna().all().all()
    assert rows["brick", JOINT].best and sum(table[table["category"] == "gear"]["best"]) == 1
    assert rows["brick", JOINT].validation_score != rows["gear", JOINT].validation_score
    text = format_leaderboard(table, terminal=False)
    assert f"brick / {JOINT} ★: msad pull {rows['brick', JOINT].run_id} --to DIR" in text
    bundle = Bundle.load(pull("brick@champion", swept / "pulled", uri), "cpu")
    assert (bundle.job.category, bundle.job.joint) == ("brick", ("gear", "brick"))
    other = Bundle.load(pull(rows["gear", JOINT].run_id, swept / "other", uri), "cpu")
    assert other.threshold != bundle.threshold
    assert all(value.equal(other.model.state_dict()[name]) for name, value in bundle.model.state_dict().items())
    assert set(speed_table("both", uri)["architecture"]) == {"baseline", JOINT}


def test_joint_trials_are_nested_in_the_run_of_their_search(swept, uri):
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("both").experiment_id])
    (search,) = [run for run in runs if run.data.tags["msad.kind"] == "joint"]
    assert search.info.status == "FINISHED" and search.info.run_name == f"gear + brick / {JOINT}"
    trials = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == search.info.run_id]
    assert len(trials) == 2 and {run.data.params["architecture"] for run in trials} == {JOINT}
    for run in trials:
        note = run.data.tags["mlflow.note.content"]
        each = [float(line.rpartition(" ")[2]) for line in note.splitlines() if line.startswith("- ")]
        assert run.data.metrics["validation_score"] == pytest.approx(sum(each) / 2, abs=1e-4)
    rows = [run for run in runs if run.data.params.get("architecture") == JOINT and run not in (search, *trials)]
    assert {run.data.tags["msad.best_trial"] for run in rows} <= {run.info.run_id for run in trials}
    assert len({run.data.tags["msad.best_trial"] for run in rows}) == 1 and len(rows) == 2


def test_pulled_model_of_a_product_predicts_and_the_report_shows_its_row(swept, demo):
    done = msad("pull", "brick@champion", "--to", "line", folder=swept)
    assert done.returncode == 0, done.stderr
    done = msad("predict", "line", str(demo / "brick" / "test"), "--no-heatmaps", "--json", "-", folder=swept)
    assert done.returncode == 0 and json.loads(done.stdout)["scored"] > 0
    page = (swept / "sweeps" / "both" / "report" / "report.html").read_text()
    assert JOINT in page


@pytest.mark.slow
def test_resume_of_a_joint_sweep_adds_nothing_and_makes_up_for_what_was_lost(swept, uri):
    before, jobs = leaderboard("both", uri), swept / "sweeps" / "both" / "jobs"
    names = {path.name for path in jobs.iterdir()}
    assert "gear + brick-baseline.joint-final" in names and "brick-baseline.joint-final" in names
    (jobs / "brick-baseline.joint-final" / "test.json").unlink()  # killed before it was measured
    (jobs / "brick-baseline.joint-final" / "result.json").unlink()  # and before the model was all there
    done = msad("search", "--resume", "both", folder=swept)
    assert done.returncode == 0, done.stderr
    after = leaderboard("both", uri)
    shown = ["category", "architecture", "run_id", "validation_score", "image_auroc"]
    assert after[shown].equals(before[shown]) and {path.name for path in jobs.iterdir()} == names
