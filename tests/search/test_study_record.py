"""A study's record: plain values that are enough to draw its pictures, whatever state its trials are in."""

from __future__ import annotations

import json

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from msad.search.study import Study
from msad.search.study_record import describe_search
from msad.training.job_config import JobConfig

LEARNING_RATE = {"learning_rate": FloatDistribution(1e-4, 1e-2, log=True)}
SPACE = {
    **LEARNING_RATE,
    "model/depth": IntDistribution(3, 4),
    "model/bottleneck_channels": CategoricalDistribution((None, 16, 64)),
}


@pytest.fixture
def make():
    """Return a function that makes a study of trials that end so: a value, `pruned`, `failed` or `running`."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def make(space, *outcomes):
        base = JobConfig(category="brick", architecture="baseline", epochs=9, evaluate_every=1)
        study = Study(base, space, len(outcomes), optuna.storages.InMemoryStorage(), "median")
        for outcome in outcomes:
            job_id, _ = study.ask()
            if outcome == "pruned":
                study.report(job_id, 1, 0.3)
                study.report(job_id, 2, 0.25)
                study._running[job_id].set_user_attr("stopped", [2, 0.25])  # as `report` does where it decides so
                study.tell(job_id)
            elif outcome == "failed":
                study.tell(job_id, failure="out of memory")
            elif outcome != "running":
                study.tell(job_id, outcome)
        return study

    return make


def test_record_holds_every_trial_the_ranges_and_the_choice(make):
    record = describe_search(make(SPACE, 0.5, "pruned", 0.9, "failed", 0.9, "running"), {})
    assert [trial["state"] for trial in record["trials"]] == [
        "complete", "pruned", "complete", "failed", "complete", "running",
    ]  # fmt: skip
    assert [trial["value"] for trial in record["trials"]] == [0.5, 0.25, 0.9, None, 0.9, None]
    assert record["chosen"] == 2  # the first of equals
    assert record["trials"][3]["failure"] == "out of memory"
    assert record["space"]["learning_rate"] == {"kind": "float", "low": 1e-4, "high": 1e-2, "log": True}
    assert record["space"]["model/depth"]["kind"] == "int"
    assert record["space"]["model/bottleneck_channels"] == {"kind": "categorical", "choices": [None, 16, 64]}
    assert record["defaults"]["learning_rate"] == record["trials"][0]["params"]["learning_rate"] == 0.001


def test_record_is_the_same_after_a_file_and_has_no_nan(make):
    study = make(SPACE, 0.5, 0.6)
    tests = {study.records()[1].job_id: {"image_auroc": float("nan"), "aupro_30": 0.7}}
    record = describe_search(study, tests)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert [trial["test"] for trial in record["trials"]] == [None, {"image_auroc": None, "aupro_30": 0.7}]


def test_test_figures_do_not_touch_the_choice(make):
    study = make(SPACE, 0.5, 0.9)
    best = {study.records()[0].job_id: {"image_auroc": 1.0}}
    assert describe_search(study, best)["chosen"] == describe_search(study, {})["chosen"] == 1


def test_importance_is_optunas_and_repeats(make):
    study = make(SPACE, 0.5, 0.6, 0.9, 0.7, 0.65)
    found = describe_search(study, {})["importance"]
    assert found["reason"] is None and found["trials"] == 5
    assert set(found["shares"]) == set(SPACE) and sum(found["shares"].values()) == pytest.approx(1)
    assert found == describe_search(study, {})["importance"]


def test_importance_is_computed_anew_only_where_trials_have_ended(make, monkeypatch):
    study = make(SPACE, 0.5, 0.6, 0.9, 0.7, "running")
    kept = describe_search(study, {})
    monkeypatch.setattr(study, "importances", lambda: {"learning_rate": 1.0})
    tests = {study.records()[0].job_id: {"image_auroc": 0.8}}
    assert describe_search(study, tests, kept)["importance"] == kept["importance"]
    study.tell(study.records()[-1].job_id, 0.8)
    assert describe_search(study, tests, kept)["importance"]["shares"] == {"learning_rate": 1.0}


@pytest.mark.parametrize(
    ("space", "outcomes", "reason"),
    [
        ({}, [0.5, 0.6], "no parameter was searched"),
        (LEARNING_RATE, [0.5, 0.6, 0.7, 0.8], "one parameter was searched"),
        (SPACE, [0.5, 0.6, 0.7, "failed"], "3 complete trials: importance needs at least 4"),
        (SPACE, [0.5, "pruned"], "1 complete trial: importance needs at least 4"),
        (SPACE, [0.5, 0.5, 0.5, 0.5], "worth the same"),
    ],
)
def test_importance_that_cannot_be_known_has_a_reason(make, space, outcomes, reason):
    found = describe_search(make(space, *outcomes), {})["importance"]
    assert reason in found["reason"] and found["shares"] == {}
