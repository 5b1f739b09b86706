"""Networks that take longer than the budget: not counted, not drawn again, and known after a resumption."""

from __future__ import annotations

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from msad.search.slow_trials import MOST_SLOW, SLOW, network_of, trials_due
from msad.search.study import Study
from msad.training.job_config import JobConfig

SPACE = {
    "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
    "model/base_width": CategoricalDistribution([8, 16, 32]),
}
BUDGET = 20.0


@pytest.fixture
def open_study(tmp_path):
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def make(trials: int = 4, space=SPACE) -> Study:
        base = JobConfig(category="bottle", architecture="baseline", epochs=9, evaluate_every=1)
        return Study(base, space, trials, f"sqlite:///{tmp_path}/optuna.db", "none", has_budget=True)

    return make


def searched(study: Study, most: int = 100) -> list[JobConfig]:
    """Search to the end, or so many trials; a width of 32 takes longer than the budget."""
    handed_out = []
    while len(handed_out) < most and (asked := study.ask()) is not None:
        job_id, job = asked
        handed_out.append(job)
        if job.model.get("base_width", 32) == 32:
            study.tell(job_id, failure="too slow", teaches=True, too_slow=(31.5, BUDGET))
        else:
            study.tell(job_id, value=job.learning_rate)
    return handed_out


def test_network_that_is_too_slow_counts_as_no_trial_and_is_not_drawn_again(open_study):
    study = open_study()
    widths = [job.model["base_width"] for job in searched(study)]
    assert widths[0] == 32 and 32 not in widths[1:] and len(widths) == 5  # the defaults, which come first
    counts = study.counts()
    assert (counts.complete, counts.too_slow, counts.done) == (4, 1, 4) and study.finished
    first = study.records()[0]
    assert (first.state, first.failure) == ("too_slow", "too slow: an image takes 31.5 ms, the budget is 20")
    assert study.winner().model["base_width"] != 32
    frozen = study.frozen_trials()[0]
    assert frozen.constraints["latency"] == pytest.approx(31.5 / BUDGET - 1) and frozen.user_attrs[SLOW] == [31.5, 20]


def test_study_knows_after_a_resumption_what_was_too_slow(open_study):
    assert len(searched(open_study(), most=2)) == 2
    study = open_study()
    assert study.counts().too_slow == 1 and not study.finished
    assert all(job.model["base_width"] != 32 for job in searched(study))
    assert study.finished and open_study().finished


def test_trial_that_was_told_to_be_too_slow_and_not_closed_is_closed_by_the_next_process(open_study):
    killed = open_study()
    job_id, _ = killed.ask()
    killed._mark_slow(killed._running[job_id], 31.5, BUDGET)
    study = open_study()
    assert study.record(job_id).state == "too_slow" and study.ask()[0] != job_id


def test_study_whose_every_network_is_too_slow_ends_without_a_winner(open_study):
    study = open_study(space={"learning_rate": SPACE["learning_rate"]})
    assert len(searched(study)) == 1  # whatever the learning rate, it is the same network
    assert study.finished and study.winner() is None and study.ask() is None


def test_study_gives_up_after_so_many_networks_that_are_too_slow(open_study):
    study = open_study(trials=2, space={"model/bottleneck_channels": FloatDistribution(8, 64)})
    handed_out = 0
    while (asked := study.ask()) is not None:
        handed_out += 1
        study.tell(asked[0], failure="too slow", too_slow=(31.5, BUDGET))
    assert handed_out == 2 + MOST_SLOW * 2 == trials_due(2, 100) and study.finished


def test_study_waits_for_running_trials_that_may_be_too_slow(open_study):
    study = open_study(trials=1)
    assert study.most_left == 1 + MOST_SLOW
    job_id, _ = study.ask()
    assert study.ask() is None and study.may_draw_more
    study.tell(job_id, failure="too slow", too_slow=(31.5, BUDGET))
    assert not study.may_draw_more and study.ask() is not None


def test_network_is_the_same_whatever_it_is_trained_by():
    base = JobConfig(category="a", architecture="baseline")
    same = base.with_parameters({"learning_rate": 0.1, "loss_weights/l1": 2.0})
    assert network_of(base) == network_of(same)
    for path, value in (("model/base_width", 8), ("image_size", 128), ("tiling/tile", 64)):
        assert network_of(base.with_parameters({path: value})) != network_of(base)
