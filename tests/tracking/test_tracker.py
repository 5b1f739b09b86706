"""Delivery to a real MLflow store on SQLite: nothing twice, nothing lost, and training never waits for it."""

from __future__ import annotations

import dataclasses
import threading
import time

import pytest

from msad.tracking import tracker as tracking
from msad.tracking.run_record import RunRecord
from msad.tracking.store import open_experiment
from msad.tracking.tracker import Tracker
from msad.workspace import JobDirectory


@pytest.fixture
def experiment(client, uri, tmp_path):
    return open_experiment(client, tmp_path.name, uri, tmp_path.name)


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def delivered_files():
    return []


@pytest.fixture
def start(client, experiment, warnings, delivered_files, monkeypatch):
    """Return a function that starts a tracker on the same store; those still open are closed at the end."""
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.05)
    trackers = []

    def start() -> Tracker:
        files = lambda client, run_id, record: delivered_files.append((record.record_id, run_id))  # noqa: E731
        trackers.append(Tracker(client, experiment, warnings.append, files))
        return trackers[-1]

    yield start
    for tracker in trackers:
        tracker.close(0)


@pytest.fixture
def study(tmp_path):
    return RunRecord(
        record_id="brick-baseline",
        kind="study",
        title="brick/baseline",
        status="running",
        directory=JobDirectory(tmp_path / "brick-baseline-final"),
        tags={"msad.category": "brick"},
    )


@pytest.fixture
def trial(tmp_path):
    return RunRecord(
        record_id="brick-baseline-0000",
        kind="trial",
        title="brick/baseline 0000",
        status="running",
        directory=JobDirectory(tmp_path / "brick-baseline-0000"),
        parent="brick-baseline",
        params={"learning_rate": 0.001, "model/base_width": 16},
    )


def advance(record: RunRecord, *epochs: int) -> None:
    record.directory.path.mkdir(exist_ok=True)
    for epoch in epochs:
        record.directory.append_progress({"epoch": epoch, "train_loss": 1 / epoch, "validation_score": epoch / 10})


def runs_by_id(client, experiment):
    runs = client.search_runs([experiment])
    by_id = {run.data.tags["msad.trial_id"]: run for run in runs}
    assert len(by_id) == len(runs), "a record has two runs"
    return by_id


def history(client, run_id, name="train/loss"):
    return [(metric.step, metric.value) for metric in client.get_metric_history(run_id, name)]


def complete(record: RunRecord, **changes) -> RunRecord:
    return dataclasses.replace(record, status="complete", **changes)


def test_trial_is_a_run_nested_in_its_studys_with_params_tags_and_metrics(start, client, experiment, study, trial):
    tracker = start()
    advance(trial, 1, 2)
    tracker.put(study)
    tracker.put(trial)
    assert tracker.flush(10) == 0
    runs = runs_by_id(client, experiment)
    run = runs[trial.record_id]
    assert run.info.run_id == tracker.run_id(trial.record_id) and run.info.run_name == "brick/baseline 0000"
    assert run.data.tags["mlflow.parentRunId"] == runs[study.record_id].info.run_id
    assert (run.data.tags["msad.kind"], run.data.tags["msad.status"]) == ("trial", "running")
    assert run.data.params == {"learning_rate": "0.001", "model/base_width": "16"}
    assert history(client, run.info.run_id) == [(1, 1.0), (2, 0.5)]


def test_trial_delivered_before_its_study_is_nested_in_its_run_all_the_same(
    start, client, experiment, warnings, study, trial
):
    tracker = start()
    with tracker._changed:  # or the first would be on its way before the second is queued
        tracker.put(trial)
        tracker.put(study)
    assert tracker.flush(10) == 0 and not warnings
    runs = runs_by_id(client, experiment)
    assert runs[trial.record_id].data.tags["mlflow.parentRunId"] == runs[study.record_id].info.run_id


def test_record_put_again_while_it_waits_keeps_its_place(start, client, experiment, study, trial):
    tracker = start()
    with tracker._changed:
        for record in (study, trial, complete(study)):
            tracker.put(record)
        assert list(tracker._pending) == [study.record_id, trial.record_id]
    assert tracker.flush(10) == 0
    assert runs_by_id(client, experiment)[study.record_id].info.status == "FINISHED"


def test_record_put_twice_by_two_trackers_is_one_run_with_every_metric_once(start, client, experiment, study, trial):
    first = start()
    advance(trial, 1, 2)
    for record in (study, trial, trial):
        first.put(record)
        assert first.flush(10) == 0
    first.close()
    second = start()  # the sweep was killed and resumed
    advance(trial, 2, 3)  # the trial went back to its checkpoint
    second.put(study)
    second.put(trial)
    second.touch(trial.record_id)
    assert second.flush(10) == 0
    run = runs_by_id(client, experiment)[trial.record_id]
    assert history(client, run.info.run_id) == [(1, 1.0), (2, 0.5), (3, 1 / 3)]


def test_tracker_that_knows_nothing_of_an_earlier_one_sends_no_metric_twice(start, client, experiment, study, trial):
    first = start()
    advance(trial, 1, 2)
    first.put(study)
    first.put(trial)
    first.close()
    advance(trial, 3)
    second = start()
    second.put(study)
    second.put(trial)
    second.close()
    run = runs_by_id(client, experiment)[trial.record_id]
    assert history(client, run.info.run_id) == [(1, 1.0), (2, 0.5), (3, 1 / 3)]


def test_delivery_that_fails_at_its_end_sends_no_metric_twice(start, client, experiment, study, trial, monkeypatch):
    real, failures = client.set_terminated, iter(range(2))

    def lost(*arguments, **words):
        if next(failures, None) is not None:
            raise ConnectionError("the answer was lost")
        return real(*arguments, **words)

    monkeypatch.setattr(client, "set_terminated", lost)
    advance(trial, 1, 2, 3)
    tracker = start()
    tracker.put(study)
    tracker.put(complete(trial, metrics={"validation_score": 0.2, "threshold": 0.5}))
    assert tracker.flush(10) == 0
    run = runs_by_id(client, experiment)[trial.record_id]
    assert history(client, run.info.run_id) == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    scores = history(client, run.info.run_id, "validation_score")
    assert scores == [(1, 0.1), (2, 0.2), (3, 0.3), (3, 0.2)]  # the last is the best epoch's, for the table of runs
    assert history(client, run.info.run_id, "threshold") == [(3, 0.5)]


def test_record_that_becomes_complete_ends_its_run_once(start, client, experiment, study, trial, delivered_files):
    tracker = start()
    advance(trial, 1, 2, 3)
    tracker.put(study)
    tracker.put(trial)
    tracker.flush(10)
    assert runs_by_id(client, experiment)[trial.record_id].info.status == "RUNNING"
    done = complete(trial, metrics={"validation_score": 0.2, "best_epoch": 2.0})
    tracker.put(done)
    tracker.put(complete(study, best=trial.record_id, note=lambda pages: f"the winner: {pages.run(trial.record_id)}"))
    tracker.close()
    again = start()
    again.put(done)
    again.close()
    runs = runs_by_id(client, experiment)
    run = runs[trial.record_id]
    assert (run.info.status, run.data.tags["msad.status"]) == ("FINISHED", "complete")
    assert run.data.metrics["validation_score"] == 0.2  # the best epoch's, although the last was better
    assert len(history(client, run.info.run_id)) == 3
    assert runs[study.record_id].data.tags["msad.best_trial"] == run.info.run_id
    assert (
        runs[study.record_id].data.tags["mlflow.note.content"]
        == f"the winner: #/experiments/{experiment}/runs/{run.info.run_id}"
    )
    assert delivered_files == [(r.record_id, runs[r.record_id].info.run_id) for r in (trial, study)]


def test_finished_run_that_gets_new_figures_is_delivered_again(start, client, experiment, study, trial):
    tracker = start()
    tracker.put(study)
    tracker.put(complete(trial, metrics={"validation_score": 0.2}))
    tracker.close()
    later = start()
    later.put(study)
    metrics = {"validation_score": 0.2, "report_test_image_auroc": 0.9}
    later.put(complete(trial, metrics=metrics, tags={"msad.test_metrics": "reporting only, after selection"}))
    later.close()
    run = runs_by_id(client, experiment)[trial.record_id]
    assert run.info.status == "FINISHED" and run.data.metrics["report_test_image_auroc"] == 0.9
    assert run.data.tags["msad.test_metrics"].startswith("reporting only")


@pytest.mark.parametrize(("status", "shown"), [("failed", "FAILED"), ("pruned", "KILLED")])
def test_trial_without_a_result_shows_how_it_ended_and_why(start, client, experiment, study, trial, status, shown):
    tracker = start()
    tracker.put(study)
    tracker.put(dataclasses.replace(trial, status=status, reason="the loss is nan in epoch 2"))
    tracker.close()
    run = runs_by_id(client, experiment)[trial.record_id]
    assert run.info.status == shown and run.data.tags["msad.reason"] == "the loss is nan in epoch 2"


def test_training_does_not_wait_for_a_store_that_takes_its_time(start, client, experiment, study, trial, monkeypatch):
    real, answers, asked = client.log_batch, threading.Event(), threading.Event()

    def slow(*arguments, **words):
        asked.set()
        answers.wait()
        return real(*arguments, **words)

    monkeypatch.setattr(client, "log_batch", slow)
    tracker = start()
    tracker.put(study)
    asked.wait()  # for ever, were it the training that asks
    tracker.put(trial)
    tracker.touch(trial.record_id)
    assert list(tracker._pending) == [trial.record_id] and not runs_by_id(client, experiment).get(trial.record_id)
    answers.set()
    assert tracker.flush(10) == 0
    assert trial.record_id in runs_by_id(client, experiment)


def test_store_that_fails_for_a_while_gets_everything_later(
    start, client, experiment, study, trial, warnings, monkeypatch
):
    real, failures = client.log_batch, iter(range(3))

    def sometimes(*arguments, **words):
        if next(failures, None) is not None:
            raise ConnectionError("database is locked\nsecond line")
        return real(*arguments, **words)

    monkeypatch.setattr(client, "log_batch", sometimes)
    advance(trial, 1, 2)
    tracker = start()
    tracker.put(study)
    tracker.put(trial)
    deadline = time.monotonic() + 20
    while len(warnings) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert tracker.flush(10) == 0
    runs = runs_by_id(client, experiment)
    assert set(runs) == {study.record_id, trial.record_id}
    assert history(client, runs[trial.record_id].info.run_id) == [(1, 1.0), (2, 0.5)]
    assert runs[trial.record_id].data.tags["mlflow.parentRunId"] == runs[study.record_id].info.run_id
    assert warnings == [
        "tracking failed and will be tried again, training goes on: database is locked",
        "tracking works again; what was kept is being delivered",
    ]


def test_store_that_stays_down_is_given_up_and_the_next_sweep_delivers(
    start, client, experiment, study, trial, warnings, monkeypatch
):
    advance(trial, 1, 2)
    with monkeypatch.context() as down:

        def refuse(*_, **__):
            raise ConnectionError("refused")

        down.setattr(client, "log_batch", refuse)
        tracker = start()
        tracker.put(study)
        tracker.put(complete(trial))
        assert tracker.close(0.5) == 2  # and comes back, although the store never does
        tracker._thread.join()
    assert tracker.close() == 2  # once more, and although the store answers now: nobody is left to deliver
    assert len(warnings) == 1
    resumed = start()
    resumed.put(study)
    resumed.put(complete(trial))
    assert resumed.close() == 0
    run = runs_by_id(client, experiment)[trial.record_id]
    assert run.info.status == "FINISHED" and len(history(client, run.info.run_id)) == 2


def test_record_that_cannot_be_delivered_does_not_hold_up_the_others(
    start, client, study, trial, delivered_files, tmp_path, monkeypatch
):
    real = client.log_batch

    def refuse_bad(run_id, **words):
        if any(param.value == "bad" for param in words["params"]):
            raise ValueError("this one is bad")
        return real(run_id, **words)

    monkeypatch.setattr(client, "log_batch", refuse_bad)
    tracker = start()
    tracker.put(study)
    folder = JobDirectory(tmp_path / "brick-baseline-0001")
    tracker.put(complete(trial, record_id="brick-baseline-0001", params={"a": "bad"}, directory=folder))
    tracker.put(complete(trial))
    assert tracker.close(2) == 1
    assert [record_id for record_id, _ in delivered_files] == [trial.record_id]


def test_more_metrics_than_one_call_takes_are_all_delivered(start, client, experiment, study, trial):
    trial.directory.path.mkdir()
    for epoch in range(1, 101):
        trial.directory.append_progress({"epoch": epoch} | {f"loss_{index}": index * epoch for index in range(24)})
    tracker = start()
    tracker.put(study)
    tracker.put(trial)
    assert tracker.close() == 0
    run_id = runs_by_id(client, experiment)[trial.record_id].info.run_id
    assert history(client, run_id, "train/loss_23") == [(epoch, 23.0 * epoch) for epoch in range(1, 101)]
