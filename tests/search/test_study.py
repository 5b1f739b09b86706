"""A study's truth is in Optuna's storage: it survives its process at any step."""

from __future__ import annotations

import optuna
import pytest
import sqlalchemy
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from msad.search.study import Study, default_parameters
from msad.training.job_config import JobConfig

SPACE = {
    "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
    "model/base_width": CategoricalDistribution([16, 32]),
}


@pytest.fixture
def open_study(tmp_path):
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def make(trials: int = 6, pruner: str = "none", epochs: int = 9, space=SPACE) -> Study:
        base = JobConfig(category="bottle", architecture="baseline", epochs=epochs, evaluate_every=1)
        return Study(base, space, trials, f"sqlite:///{tmp_path}/optuna.db", pruner)

    return make


def test_first_trial_is_the_architectures_defaults(open_study):
    job_id, job = open_study().ask()
    assert job_id == "bottle-baseline-0000"
    assert (job.learning_rate, job.model["base_width"]) == (JobConfig.learning_rate, 32)


def test_default_outside_the_space_is_left_to_the_sampler():
    base = JobConfig(category="a", architecture="baseline", learning_rate=1.0)
    space = {**SPACE, "model/bottleneck_channels": IntDistribution(8, 64)}
    assert default_parameters(base, space) == {"model/base_width": 32}


def test_study_hands_out_exactly_its_trials(open_study):
    study = open_study(trials=3)
    names = []
    while (asked := study.ask()) is not None:
        names.append(asked[0])
        study.tell(asked[0], value=0.5)
    assert names == [f"bottle-baseline-{n:04d}" for n in range(3)]
    assert study.finished and study.counts().complete == 3


def test_killed_study_resumes_its_running_trial_under_its_own_name(open_study):
    killed = open_study(trials=4)
    first, _ = killed.ask()
    killed.tell(first, value=0.7)
    second, job = killed.ask()
    killed.report(second, 1, 0.3)

    study = open_study(trials=4)
    assert study.counts().complete == 1 and not study.finished
    again, same_job = study.ask()
    assert (again, same_job) == (second, job)
    study.report(again, 1, 0.9)  # the retried trial comes by epoch 1 again: the first report stays
    study.report(again, 2, 0.4)
    study.tell(again, value=0.4)
    while (asked := study.ask()) is not None:
        study.tell(asked[0], value=0.1)
    assert study.counts().complete == 4 and len(study.records()) == 4
    assert study.best().user_attrs["job_id"] == first


def test_resumed_study_draws_new_configurations(open_study):
    def draw(study: Study, count: int) -> list[float]:
        rates = []
        for _ in range(count):
            job_id, job = study.ask()
            study.tell(job_id, value=0.5)
            rates.append(job.learning_rate)
        return rates

    rates = draw(open_study(), 3) + draw(open_study(), 3)
    assert len(set(rates)) == 6


def test_same_seed_draws_the_same_configurations(tmp_path):
    def draw(name: str) -> list[JobConfig]:
        base = JobConfig(category="bottle", architecture="baseline", seed=5)
        study = Study(base, SPACE, 5, f"sqlite:///{tmp_path}/{name}.db", "asha")
        jobs = []
        while (asked := study.ask()) is not None:
            jobs.append(asked[1])
            study.tell(asked[0], value=asked[1].learning_rate)
        return jobs

    assert draw("one") == draw("two")


@pytest.mark.parametrize("pruner", ["asha", "median"])
def test_weak_trial_is_pruned_but_not_in_its_first_epochs(open_study, pruner):
    study = open_study(trials=8, pruner=pruner, epochs=30)
    for _ in range(6):
        job_id, _ = study.ask()
        for epoch in range(1, 31):
            study.report(job_id, epoch, 0.9)
        study.tell(job_id, value=0.9)
    weak, _ = study.ask()
    stopped = next(epoch for epoch in range(1, 31) if study.report(weak, epoch, 0.1))
    study.tell(weak, value=0.1)
    assert 4 <= stopped < 30
    assert study.record(weak).state == "pruned" and study.counts().pruned == 1


def test_pruning_after_a_resume_knows_the_earlier_trials(open_study):
    study = open_study(trials=8, pruner="median", epochs=30)
    for _ in range(5):
        job_id, _ = study.ask()
        for epoch in range(1, 31):
            study.report(job_id, epoch, 0.9)
        study.tell(job_id, value=0.9)
    resumed = open_study(trials=8, pruner="median", epochs=30)
    weak, _ = resumed.ask()
    assert any(resumed.report(weak, epoch, 0.1) for epoch in range(1, 10))


def test_failed_trial_keeps_its_reason_and_is_never_the_winner(open_study):
    study = open_study(trials=2)
    bad, _ = study.ask()
    study.tell(bad, failure="the loss is nan in epoch 1")
    assert study.winner() is None
    good, job = study.ask()
    study.tell(good, value=0.2)
    assert study.winner() == job
    assert study.record(bad).failure == "the loss is nan in epoch 1"
    assert study.finished and study.counts().failed == 1


def test_study_without_trials_wins_with_its_base(open_study):
    study = open_study(trials=0, space={})
    assert study.finished and study.ask() is None
    assert study.winner() == study.base


@pytest.fixture
def large():
    """Return a function that opens a study of so many ended trials, a fifth of them pruned or failed."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def make(trials: int, storage: optuna.storages.BaseStorage) -> Study:
        base = JobConfig(category="bottle", architecture="baseline", epochs=9, evaluate_every=1)
        study = Study(base, SPACE, trials + 9, storage, "asha")
        ends = [("PRUNED", None), ("FAIL", None), *[("COMPLETE", 0.5)] * 8]
        for number in range(trials):
            state, value = ends[number % 10]
            study._optuna.add_trial(
                optuna.trial.create_trial(
                    state=optuna.trial.TrialState[state],
                    value=value and number / trials,
                    params={"learning_rate": 1e-3, "model/base_width": 16},
                    distributions=SPACE,
                    user_attrs={"job_id": f"bottle-baseline-{number:04d}"},
                    intermediate_values={1: 0.4},
                )
            )
        return Study(base, SPACE, trials + 9, storage, "asha")

    return make


def test_study_of_a_thousand_trials_resumes_with_all_of_them(large):
    study = large(1000, optuna.storages.InMemoryStorage())
    counts = study.counts()
    assert (counts.complete, counts.pruned, counts.failed, counts.running) == (800, 100, 100, 0)
    assert study.best().user_attrs["job_id"] == "bottle-baseline-0999"
    assert [record.job_id for record in study.records()] == [f"bottle-baseline-{n:04d}" for n in range(1000)]


def test_events_of_a_large_study_cost_no_more_statements_than_those_of_a_small_one(large, tmp_path):
    def statements(trials: int) -> list[int]:
        storage, executed = optuna.storages.get_storage(f"sqlite:///{tmp_path}/{trials}.db"), []
        study, after = large(trials, storage), []
        sqlalchemy.event.listen(storage._backend.engine, "before_cursor_execute", lambda *words: executed.append(words))
        for _ in range(2):
            job_id, _ = study.ask()
            after.append(len(executed))
            for epoch in (1, 2, 3):
                study.report(job_id, epoch, 0.9)
            after.append(len(executed))
            study.tell(job_id, value=0.9)
            after.append(len(executed))
        assert [record.state for record in study.records()].count("complete") == study.counts().complete
        assert study.best().value == max(0.9, (trials - 1) / trials) and not study.finished
        assert len(executed) == after[-1], "what was known was read again"
        return after

    assert statements(10) == statements(60)
