"""What was delivered and has changed since: it is sent again, replaces, and no other training is relabelled."""

from __future__ import annotations

import dataclasses
import math

import pytest

from msad.tracking.run_mirror import CONTENT_TAG, RunMirror
from msad.tracking.run_record import RunRecord
from msad.tracking.store import open_experiment
from msad.workspace import JobDirectory


@pytest.fixture
def experiment(client, uri, tmp_path):
    return open_experiment(client, tmp_path.name, uri, tmp_path.name)


@pytest.fixture
def said():
    return []


@pytest.fixture
def deliver(client, experiment, said):
    """Return a function that delivers records as a sweep does that has just been resumed; it returns their run IDs."""

    def deliver(*records, files=lambda client, run_id, record: None):
        mirror = RunMirror(client, experiment, files, said.append)
        for record in records:
            mirror.deliver(record, {record.record_id: record for record in records})
        return [mirror.run_ids[record.record_id] for record in records]

    return deliver


@pytest.fixture
def trial(tmp_path):
    directory = JobDirectory(tmp_path / "brick-baseline-0000")
    directory.path.mkdir()
    for epoch, score in ((1, 0.1), (2, 0.4), (3, 0.3)):
        directory.append_progress({"epoch": epoch, "train_loss": 1 / epoch, "validation_score": score})
    return RunRecord(
        record_id="brick-baseline-0000",
        kind="trial",
        title="trial 0000",
        status="complete",
        directory=directory,
        params={"learning_rate": 0.001},
        tags={"msad.identity": "i1", "msad.code_version": "1"},
        metrics={"validation_score": 0.4, "test_image_auroc_mean": 0.8, "best_epoch": 2.0},
    )


def with_metrics(record, **metrics):
    return dataclasses.replace(record, metrics={**record.metrics, **metrics})


def latest(client, run_id):
    return client.get_run(run_id).data.metrics


def test_value_that_changed_under_the_same_name_replaces_the_old_one(client, experiment, deliver, trial):
    (run_id,) = deliver(trial)
    assert deliver(with_metrics(trial, test_image_auroc_mean=0.7)) == [run_id]  # lower: the larger does not win
    assert latest(client, run_id)["test_image_auroc_mean"] == 0.7
    (found,) = client.search_runs([experiment], filter_string="metrics.test_image_auroc_mean < 0.75")
    assert found.info.run_id == run_id and not client.search_runs(
        [experiment], filter_string="metrics.test_image_auroc_mean > 0.75"
    )
    last = client.get_metric_history(run_id, "test_image_auroc_mean")[-1]
    assert (last.step, last.value) == (3, 0.7)


def test_epochs_that_were_trained_again_replace_the_old_ones_and_fewer_of_them_too(client, deliver, trial):
    (run_id,) = deliver(trial)
    (trial.directory.path / "progress.jsonl").unlink()
    for epoch, score in ((1, 0.1), (2, 0.2)):  # the third was never reached this time
        trial.directory.append_progress({"epoch": epoch, "train_loss": 2 / epoch, "validation_score": score})
    deliver(with_metrics(trial, validation_score=0.2))
    by_step = {metric.step: metric.value for metric in client.get_metric_history(run_id, "validation_score")}
    assert by_step == {1: 0.1, 2: 0.2, 3: 0.2}  # the last of each step; at the last step the summary, as ever
    assert latest(client, run_id)["validation_score"] == 0.2
    assert [m.value for m in client.get_metric_history(run_id, "train/loss") if m.step == 2] == [0.5, 1.0]


def test_figure_that_is_gone_is_nan_and_what_others_logged_stays(client, deliver, trial):
    (run_id,) = deliver(trial)
    client.log_metric(run_id, "my own figure", 1.0)
    deliver(dataclasses.replace(trial, metrics={"validation_score": 0.4}))
    metrics = latest(client, run_id)
    assert math.isnan(metrics["test_image_auroc_mean"]) and math.isnan(metrics["best_epoch"])
    assert metrics["my own figure"] == 1.0 and metrics["validation_score"] == 0.4


def test_what_has_not_changed_is_not_sent_again(client, deliver, trial, monkeypatch):
    (run_id,) = deliver(trial)
    monkeypatch.setattr(client, "log_batch", None)
    assert deliver(trial, files=None) == [run_id]


def test_file_that_changed_under_the_same_name_is_sent_again(client, deliver, trial):
    sent = []
    picture = trial.directory.path / "pictures" / "curves.png"
    picture.parent.mkdir()

    def upload(_client, _run_id, record):
        sent.append(record.files()["pictures/curves.png"].read_bytes())

    for content in (b"old", b"old", b"new"):
        picture.write_bytes(content)
        deliver(trial, files=upload)
    assert sent == [b"old", b"new"]


def test_delivery_that_ended_in_its_middle_is_made_whole(client, deliver, trial):
    def fail(*_):
        raise ConnectionError("the server went away")

    deliver(trial)
    changed = with_metrics(trial, best_epoch=1.0)
    with pytest.raises(ConnectionError):
        deliver(changed, files=fail)
    sent = []
    (run_id,) = deliver(changed, files=lambda *words: sent.append(words))
    assert len(sent) == 1 and client.get_run(run_id).data.tags[CONTENT_TAG] == changed.content()
    assert len(client.get_metric_history(run_id, "best_epoch")) == 2


def test_run_of_other_images_is_not_relabelled(client, deliver, trial):
    pruned = dataclasses.replace(trial, status="pruned")
    (run_id,) = deliver(pruned)
    deliver(dataclasses.replace(pruned, reason="news", tags={"msad.identity": "i2", "msad.code_version": "2"}))
    tags = client.get_run(run_id).data.tags
    assert (tags["msad.identity"], tags["msad.code_version"], tags["msad.status"]) == ("i1", "1", "pruned")


def test_training_on_other_images_gets_a_run_of_its_own(client, deliver, trial, said):
    (before,) = deliver(trial)
    anew = dataclasses.replace(trial, status="running", tags={"msad.identity": "i2", "msad.code_version": "2"})
    (after,) = deliver(anew)
    assert after != before and "is of other images" in said[0] and before in said[0]
    old, new = client.get_run(before), client.get_run(after)
    assert old.data.tags["msad.kind"] == "replaced" and old.data.tags["msad.identity"] == "i1"
    assert old.data.metrics["validation_score"] == 0.4 and old.info.run_name == "trial 0000 (replaced)"
    assert new.data.tags["msad.identity"] == "i2" and new.data.tags["msad.kind"] == "trial"
    assert deliver(anew) == [after]


def test_winner_with_other_parameters_gets_a_run_of_its_own_below_which_the_trials_go_on(
    client, deliver, trial, tmp_path
):
    study = dataclasses.replace(
        trial, record_id="brick-baseline", kind="study", directory=JobDirectory(tmp_path / "f"), metrics={}
    )
    child = dataclasses.replace(trial, parent=study.record_id)
    first, run_id = deliver(study, child)
    other = dataclasses.replace(study, params={"learning_rate": 0.01})
    second, again = deliver(other, child)
    assert second != first and again == run_id
    assert client.get_run(second).data.params == {"learning_rate": "0.01"}
    assert client.get_run(run_id).data.tags["mlflow.parentRunId"] == second


def test_run_deleted_in_the_ui_comes_back_only_with_news(client, deliver, trial, said):
    (run_id,) = deliver(trial)
    client.delete_run(run_id)
    assert deliver(trial) == [run_id] and client.get_run(run_id).info.lifecycle_stage == "deleted" and not said
    assert deliver(with_metrics(trial, best_epoch=3.0)) == [run_id]
    assert client.get_run(run_id).info.lifecycle_stage == "active" and "was deleted in MLflow" in said[0]
    assert latest(client, run_id)["best_epoch"] == 3.0


def test_store_that_knows_nothing_gets_all_of_a_finished_trial(client, uri, deliver, trial, tmp_path):
    deliver(trial)
    elsewhere = open_experiment(client, f"{tmp_path.name}-moved", uri, f"{tmp_path.name}-moved")
    mirror = RunMirror(client, elsewhere, lambda *_: None, print)
    mirror.deliver(trial, {})
    (run,) = client.search_runs([elsewhere])
    assert run.data.metrics["validation_score"] == 0.4 and run.info.status == "FINISHED"
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) == 3
