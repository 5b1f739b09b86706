"""The report on a study's choice, against scipy and by hand."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from msad.search.selection import SEED_FIGURES, SelectionReport, report_selection, seed_statistics


def trials(validation, test) -> pd.DataFrame:
    return pd.DataFrame({"validation": validation, "image_auroc": test})


@pytest.mark.parametrize("levels", [2, 4, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_spearman_is_scipys_also_with_ties(seed, levels):
    random = np.random.default_rng(seed)
    validation, test = random.integers(levels, size=(2, 12)) / levels
    expected = spearmanr(validation, test).statistic
    assert report_selection(trials(validation, test)).spearman == pytest.approx(expected, abs=1e-12)


def test_choice_is_compared_with_the_best_on_test_and_with_chance():
    report = report_selection(trials([0.5, 0.9, 0.7, 0.6], [0.80, 0.95, 0.97, 0.60]))
    assert report == SelectionReport(
        spearman=pytest.approx(0.6), gap=pytest.approx(0.02), chosen=0.95, oracle=0.97, random_mean=0.83, trials=4
    )


def test_choice_that_is_the_best_on_test_has_no_gap():
    report = report_selection(trials([0.5, 0.9, 0.7], [0.8, 0.99, 0.9]))
    assert (report.gap, report.spearman) == (0.0, pytest.approx(1.0))


def test_earliest_of_equal_validation_values_is_the_chosen_one():
    assert report_selection(trials([0.5, 0.9, 0.9], [0.8, 0.7, 0.99])).chosen == 0.7


@pytest.mark.parametrize(
    ("validation", "test", "gap"),
    [
        ([0.5], [0.9], 0.0),
        ([0.6, 0.5], [0.8, 0.9], 0.1),
        ([0.5, 0.5, 0.5], [0.7, 0.8, 0.9], 0.2),
        ([0.5, 0.6, 0.7], [1.0, 1.0, 1.0], 0.0),
    ],
)
def test_fewer_than_three_trials_or_equal_values_rank_nothing_but_have_a_gap(validation, test, gap):
    report = report_selection(trials(validation, test))
    assert math.isnan(report.spearman)
    assert (report.gap, report.trials) == (pytest.approx(gap), len(test))


def test_trial_without_a_value_counts_in_no_mean_and_no_rank():
    nan = math.nan
    whole = report_selection(trials([0.5, 0.9, 0.7, 0.6], [0.80, 0.95, 0.97, 0.60]))
    assert report_selection(trials([0.5, nan, 0.9, 0.7, 0.65, 0.6], [0.80, 0.999, 0.95, 0.97, nan, 0.60])) == whole


def test_chosen_trial_without_a_test_figure_is_not_replaced_by_another():
    report = report_selection(trials([0.5, 0.6, 0.9, 0.7], [0.8, 0.7, math.nan, 0.97]))
    assert math.isnan(report.chosen) and math.isnan(report.gap)
    assert (report.oracle, report.trials) == (0.97, 3)


@pytest.mark.parametrize("test", [[], [math.nan, math.nan]])
def test_report_of_no_trial_is_nan(test):
    report = report_selection(trials([0.5, 0.6][: len(test)], test))
    assert report.trials == 0
    assert all(math.isnan(v) for v in (report.spearman, report.gap, report.chosen, report.oracle, report.random_mean))


def test_seeds_have_a_mean_and_a_sample_standard_deviation():
    tests = [dict.fromkeys(SEED_FIGURES, value) for value in (0.9, 0.95, 0.97)]
    found = seed_statistics(tests)
    assert found["aupro_30_mean"] == pytest.approx(0.94)
    assert found["image_auroc_sd"] == pytest.approx(statistics.stdev([0.9, 0.95, 0.97]))
    assert len(found) == 2 * len(SEED_FIGURES)


def test_one_seed_has_no_spread_and_an_unknown_figure_no_mean():
    assert seed_statistics([dict.fromkeys(SEED_FIGURES, 0.9)]) == {}
    tests = [dict.fromkeys(SEED_FIGURES, value) for value in (0.9, 0.95)]
    tests[1]["pixel_auroc"] = math.nan
    assert set(seed_statistics(tests)) == {
        f"{n}_{s}" for n in set(SEED_FIGURES) - {"pixel_auroc"} for s in ("mean", "sd")
    }
