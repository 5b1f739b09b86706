"""Trials by worth and time, read back from a real SQLite store."""

from __future__ import annotations

import pandas as pd
import pytest
from mlflow import MlflowClient

from msad.errors import TrackingError
from msad.tracking.speed import BUDGET_TAG, COLUMNS, pareto_front, speed_table

TRIALS = {  # score, ms
    ("bottle", "baseline"): [(0.90, 40.0), (0.85, 15.0), (0.80, 18.0), (None, 3.0)],
    ("bottle", "multiscale"): [(0.85, 12.0), (0.95, 90.0)],
    ("tile", "baseline"): [(0.70, 60.0)],
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    client, runs = MlflowClient(tracking_uri=uri), {}

    def run(experiment, kind, study, name, figures, status="complete"):
        category, architecture = study
        tags = {"msad.kind": kind, "msad.study": "/".join(study), "msad.trial_id": name, "msad.status": status}
        tags |= {"msad.category": category, "msad.architecture": architecture}
        runs[name] = client.create_run(experiment, tags=tags).info.run_id
        for metric, value in zip(("validation_score", "latency_ms"), figures, strict=True):
            if value is not None:
                client.log_metric(runs[name], metric, value)

    first = client.create_experiment("first", tags={"msad.sweep": "first"})
    for study, trials in TRIALS.items():
        run(first, "study", study, "-".join(study), (0.99, 1.0))
        for number, figures in enumerate(trials):
            run(first, "trial", study, f"{'-'.join(study)}-{number:04d}", figures)
    run(first, "trial", ("tile", "baseline"), "tile-baseline-0001", (0.99, 1.0), status="pruned")
    fixed = client.create_experiment("fixed", tags={"msad.sweep": "fixed"})
    client.create_run(fixed, tags={"msad.kind": "sweep", BUDGET_TAG: "30"})
    run(fixed, "study", ("nut", "baseline"), "nut-baseline", (0.6, 25.0))
    return uri, runs


def test_speed_table_marks_the_front_and_the_best_within_the_budget(store):
    uri, runs = store
    frame = speed_table("first", uri, 20.0)
    assert tuple(frame.columns) == COLUMNS and frame.attrs["latency_budget"] == 20
    assert frame[["category", "trial"]].values.tolist() == [
        ["bottle", "bottle-multiscale-0001"],
        ["bottle", "bottle-baseline-0000"],
        ["bottle", "bottle-multiscale-0000"],
        ["bottle", "bottle-baseline-0001"],
        ["bottle", "bottle-baseline-0002"],
        ["tile", "tile-baseline-0000"],
    ]
    assert frame["front"].tolist() == [True, True, True, False, False, True]
    assert frame.loc[frame["best"], "run_id"].tolist() == [runs["bottle-multiscale-0000"]]


def test_speed_table_without_a_budget_has_the_highest_score_for_best(store):
    frame = speed_table("first", store[0])
    assert frame.loc[frame["best"], "trial"].tolist() == ["bottle-multiscale-0001", "tile-baseline-0000"]
    assert frame.attrs["latency_budget"] is None


def test_speed_table_of_one_fixed_configuration_is_its_study_within_the_sweeps_own_budget(store):
    frame = speed_table("fixed", store[0])
    assert frame[["trial", "latency_ms", "front", "best"]].values.tolist() == [["", 25.0, True, True]]
    assert frame.attrs["latency_budget"] == 30
    assert not speed_table("fixed", store[0], 24.9)["best"].any()


def test_speed_table_of_an_unknown_sweep_is_refused(store):
    with pytest.raises(TrackingError, match="'frist'"):
        speed_table("frist", store[0])


def test_front_keeps_equals():
    frame = pd.DataFrame({"validation_score": [0.5, 0.5, 0.4], "latency_ms": [10.0, 10.0, 10.0]})
    assert pareto_front(frame) == [True, True, False]
