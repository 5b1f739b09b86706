"""A study whose process dies between two writes is gone on with as if it had not; failures teach, and nothing else."""

from __future__ import annotations

import math

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from msad.search.pruning import Halving
from msad.search.study import Study
from msad.training.job_config import JobConfig

SPACE = {
    "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
    "weight_decay": FloatDistribution(1e-6, 1e-2, log=True),
    "gradient_clip": FloatDistribution(0.1, 10.0),
}


class Killed(BaseException):
    """Nothing catches it, and nothing is written after it."""


@pytest.fixture
def open_study(tmp_path):
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def make(pruner: str = "none", trials: int = 6, kept: bool = True) -> Study:
        base = JobConfig(category="bottle", architecture="baseline", epochs=30, evaluate_every=1)
        storage = f"sqlite:///{tmp_path}/optuna.db" if kept else optuna.storages.InMemoryStorage()
        return Study(base, SPACE, trials, storage, pruner)

    return make


def finish(study: Study) -> list[tuple]:
    """Give every trial its learning rate as its value; return what the study knows of all of them."""
    while (asked := study.ask()) is not None:
        study.tell(asked[0], value=asked[1].learning_rate)
    return [(record.job_id, record.job, record.state, record.value) for record in study.records()]


def kill_at(monkeypatch, name: str, times: int = 0) -> None:
    """Let a process die in the place of a call of Optuna's storage, after so many that succeed."""
    storage, left = optuna.storages._CachedStorage, [times]
    real = getattr(storage, name)

    def dying(self, *words):
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        return real(self, *words)

    monkeypatch.setattr(storage, name, dying)


@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize(
    ("name", "times"),
    [
        ("set_trial_param", 0),
        ("set_trial_param", 1),
        ("set_trial_user_attr", 0),
    ],
)
def test_trial_that_was_not_handed_out_yet_becomes_what_it_would_have_been(
    open_study, monkeypatch, before, name, times
):
    whole, study = finish(open_study(kept=False)), open_study()
    for _ in range(before):
        job_id, job = study.ask()
        study.tell(job_id, value=job.learning_rate)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, name, times)
        study.ask()
    assert finish(open_study()) == whole
    assert whole[0][1].learning_rate == JobConfig.learning_rate, "the defaults are lost"


@pytest.mark.parametrize("name", ["set_trial_intermediate_value", "set_trial_state_values"])
def test_trial_that_is_to_be_stopped_is_stopped_although_the_sweep_was_killed_then(open_study, monkeypatch, name):
    study = open_study(pruner="asha")
    good, _ = study.ask()
    for epoch in (4, 12, 30):
        study.report(good, epoch, 0.9)
    study.tell(good, value=0.9)
    weak, _ = study.ask()
    rung = study._optuna.pruner.rungs[0]
    assert not study.report(weak, rung - 1, 0.1)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, name)
        assert study.report(weak, rung, 0.1)
        study.tell(weak, value=0.1)
    resumed = open_study(pruner="asha")
    assert resumed.record(weak).state == "pruned" and resumed.ask()[0] != weak
    assert resumed.frozen_trials()[1].intermediate_values[rung] == 0.1


def test_value_that_was_written_has_been_judged_and_is_not_judged_again(open_study):
    study = open_study(pruner="median", trials=9)
    ended, _ = study.ask()  # by patience, after epoch 10 of 30, when there was nothing to compare it with
    assert not study.report(ended, 10, 0.1)
    for _ in range(5):
        good, _ = study.ask()
        for epoch in (10, 11):
            study.report(good, epoch, 0.9)
        study.tell(good, value=0.9)
    assert not study.report(ended, 10, 0.1), "the last result, which Tune shows twice"
    resumed = open_study(pruner="median", trials=9)
    assert resumed.ask()[0] == ended and not resumed.report(ended, 10, 0.1)
    resumed.tell(ended, value=0.1)
    assert resumed.record(ended).state == "complete"


def test_halving_decides_by_values_alone(open_study):
    study = open_study(pruner="asha", trials=9, kept=False)
    for value in (0.5, 0.6, 0.4):
        job_id, _ = study.ask()
        study.report(job_id, 30, value)
    trials = study.frozen_trials()
    decided = [Halving([4, 12]).prune(study._optuna, trial) for trial in trials * 2]
    assert decided == [True, False, True] * 2


def test_halving_goes_by_the_best_value_until_the_rung_and_not_by_one_that_is_no_number():
    study = optuna.create_study(direction="maximize")
    for first, second in ((0.5, 0.5), (0.6, 0.4), (0.1, 0.2), (0.9, math.nan)):
        values, running = {10: first, 30: second}, optuna.trial.TrialState.RUNNING
        study.add_trial(optuna.trial.create_trial(state=running, intermediate_values=values))
    assert [Halving([12]).prune(study, trial) for trial in study.get_trials()] == [True, False, True, True]


@pytest.mark.parametrize("name", ["set_trial_user_attr", "set_trial_system_attr", "set_trial_state_values"])
def test_failure_that_was_half_told_is_told_or_the_trial_is_handed_out_again(open_study, monkeypatch, name):
    study = open_study()
    failed, _ = study.ask()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, name, times=1 if name == "set_trial_user_attr" else 0)
        study.tell(failed, failure="the loss is not finite", teaches=True)
    resumed = open_study()
    if name == "set_trial_user_attr":  # the reason is not there: the trial fails again
        assert resumed.ask()[0] == failed
        resumed.tell(failed, failure="the loss is not finite", teaches=True)
    assert (resumed.record(failed).state, resumed.record(failed).failure) == ("failed", "the loss is not finite")
    assert resumed.counts().failed == 1 and resumed.counts().running == 0


def test_failure_teaches_the_sampler_and_wins_nothing(open_study):
    study = open_study(trials=3, kept=False)
    for failure in ({"failure": "the loss is not finite", "teaches": True}, {"failure": "its worker crashed"}):
        job_id, _ = study.ask()
        study.report(job_id, 20, 0.99)  # it was the best of all until then
        study.tell(job_id, **failure)
    trials = study.frozen_trials()
    assert [trial.state for trial in trials] == [TrialState.PRUNED, TrialState.FAIL]
    assert [trial.constraints for trial in trials] == [{"failure": 1.0}, {}]
    assert study.best() is None and study.winner() is None
    assert [record.state for record in study.records()] == ["failed", "failed"]
    counts = study.counts()
    assert (counts.complete, counts.pruned, counts.failed) == (0, 0, 2)


def test_region_that_diverges_is_left(open_study):
    """Two thirds of the learning rates, on their logarithmic scale, diverge; the others are worth the same."""

    def diverging(teaches: bool) -> int:
        study, late = open_study(trials=40, kept=False), 0
        while (asked := study.ask()) is not None:
            job_id, job = asked
            if diverges := job.learning_rate > 5e-4:
                study.tell(job_id, failure="the loss is not finite", teaches=teaches)
            else:
                study.tell(job_id, value=0.5)
            late += diverges and int(job_id[-4:]) >= 20
        return late

    taught, ignored = diverging(True), diverging(False)
    assert taught < ignored / 2, (taught, ignored)
