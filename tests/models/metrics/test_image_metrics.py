from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score, roc_curve

from msad.models.errors import ModelError
from msad.models.metrics.image_metrics import (
    average_precision,
    f1_at,
    image_auroc,
    image_metrics,
    prevalence,
    recall_at,
    recall_at_fpr,
)
from msad.models.metrics.intervals import wilson


@st.composite
def labelled_scores(draw, both_classes=True):
    size = draw(st.integers(2, 60))
    # Few distinct values: ties are the hard part.
    values = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e6, 1e6, width=32))
    labels = draw(st.lists(st.integers(0, 1), min_size=size, max_size=size))
    if both_classes:
        labels[:2] = [0, 1]
    return np.array(labels), np.array(draw(st.lists(values, min_size=size, max_size=size)))


@given(labelled_scores())
def test_image_auroc_and_average_precision_with_ties_equal_scikit_learn(case):
    labels, scores = case
    assert image_auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
    assert average_precision(labels, scores) == pytest.approx(average_precision_score(labels, scores), abs=1e-9)


@given(labelled_scores(), st.integers(1, 5))
def test_average_precision_with_weights_equals_repeated_items(case, copies):
    labels, scores = case
    weights = np.where(labels == 1, 1, copies)
    repeated = average_precision(np.repeat(labels, weights), np.repeat(scores, weights))
    assert average_precision(labels, scores, weights) == pytest.approx(repeated, abs=1e-9)


@given(labelled_scores(), st.floats(-4, 4))
def test_f1_at_a_threshold_equals_scikit_learn_on_strictly_greater_scores(case, threshold):
    labels, scores = case
    expected = f1_score(labels, scores > threshold, zero_division=0)
    assert f1_at(labels, scores, threshold) == pytest.approx(expected, abs=1e-12)


@given(labelled_scores(), st.floats(0, 1))
def test_recall_at_fpr_is_the_highest_point_of_the_roc_curve_below_the_rate(case, rate):
    labels, scores = case
    false_rate, recall, _ = roc_curve(labels, scores, drop_intermediate=False)
    expected = recall[false_rate <= rate + 1e-9].max()
    assert recall_at_fpr(labels, scores, rate) == pytest.approx(expected, abs=1e-12)


def test_constant_scores_give_chance_level():
    labels = np.array([0, 0, 0, 1])
    assert image_auroc(labels, np.ones(4)) == 0.5
    assert average_precision(labels, np.ones(4)) == prevalence(labels) == 0.25
    assert recall_at_fpr(labels, np.ones(4), 0.5) == 0.0


def test_infinite_scores_are_ranked():
    assert image_auroc([0, 1, 1], [-np.inf, 0.0, np.inf]) == 1.0


@pytest.mark.parametrize("labels", [[0, 0], [1, 1], []])
def test_metrics_that_need_a_missing_class_are_nan(labels):
    scores = np.arange(len(labels), dtype=float)
    assert math.isnan(image_auroc(labels, scores))
    assert math.isnan(recall_at_fpr(labels, scores, 0.1))
    no_anomaly = not any(labels)
    assert math.isnan(average_precision(labels, scores)) == no_anomaly
    assert math.isnan(f1_at(labels, scores, 0.0)) == no_anomaly
    estimates = image_metrics(labels, scores, 0.0, 0.1)
    undefined = {name for name, estimate in estimates.items() if all(map(math.isnan, estimate))}
    expected = {"image_auroc", "recall_at_fpr"} | ({"image_prauc", "f1", "recall"} if no_anomaly else set())
    assert undefined == expected | (set() if 0 in labels else {"false_alarm_rate"})


@pytest.mark.parametrize(
    ("labels", "scores", "said"),
    [
        ([0, 1], [0.0, np.nan], "1 of 2 scores are NaN"),
        ([0, 2], [0.0, 1.0], "labels are 0"),
        ([0, 1], [1.0], "2 and 1"),
    ],
)
def test_metrics_refuse_what_has_no_meaning(labels, scores, said):
    with pytest.raises(ModelError, match=said):
        image_auroc(labels, scores)


@given(labelled_scores(), st.floats(-4, 4), st.floats(0, 1))
def test_image_metrics_are_those_of_each_function_inside_their_intervals(case, threshold, rate):
    labels, scores = case
    estimates = image_metrics(labels, scores, threshold, rate, resamples=20)
    assert {name: estimate.value for name, estimate in estimates.items()} == {
        "image_auroc": image_auroc(labels, scores),
        "image_prauc": average_precision(labels, scores),
        "f1": f1_at(labels, scores, threshold),
        "recall": recall_at(labels, scores, threshold),
        "recall_at_fpr": recall_at_fpr(labels, scores, rate),
        "false_alarm_rate": pytest.approx(np.mean(scores[labels == 0] > threshold)),
    }
    assert recall_at(labels, scores, threshold) == pytest.approx(np.mean(scores[labels == 1] > threshold))
    assert all(0 <= estimate.low <= estimate.value <= estimate.high <= 1 for estimate in estimates.values())
    assert all(estimate.low < estimate.high for estimate in estimates.values())


def test_image_metrics_resample_each_class_and_measure_what_was_drawn():
    """The same draws, each measured by scikit-learn on the images themselves instead of on counts."""
    rng = np.random.default_rng(1)
    labels, scores = np.repeat([0, 1], [7, 11]), rng.integers(0, 6, 18).astype(float)
    estimates = image_metrics(labels, scores, 2.0, 0.3, confidence=0.8, resamples=60, seed=4)
    order, draws = np.argsort(scores)[::-1], np.random.default_rng(4)
    counts = np.zeros((60, 18), int)
    for label, number in ((1, 11), (0, 7)):
        counts[:, np.flatnonzero(labels[order] == label)] = draws.multinomial(number, np.full(number, 1 / number), 60)
    values = []
    for row in counts:
        drawn, value = np.repeat(labels[order], row), np.repeat(scores[order], row)
        false_rate, recall, _ = roc_curve(drawn, value, drop_intermediate=False)
        values.append(
            {
                "image_prauc": average_precision_score(drawn, value),
                "recall_at_fpr": recall[false_rate <= 0.3 + 1e-9].max(),
            }
        )
    for name in values[0]:
        low, high = np.quantile([value[name] for value in values], [0.1, 0.9])
        least = wilson(estimates[name].value, 11, 0.8)
        expected = min(low, least[0]), max(high, least[1])
        assert estimates[name][1:] == pytest.approx(expected, abs=1e-9), name


def test_image_metrics_intervals_cover_the_true_auroc_as_often_as_they_claim():
    # Two unit normals one deviation apart have AUROC Φ(1/√2).
    truth = 0.5 * (1 + math.erf(0.5))
    labels = np.repeat([0, 1], 40)
    hits = 0
    for seed in range(60):
        scores = np.random.default_rng(seed).normal(size=80) + labels
        value, low, high = image_metrics(labels, scores, 0.5, 0.1, confidence=0.9, resamples=200)["image_auroc"]
        assert low <= value <= high
        hits += low <= truth <= high
    assert 45 <= hits <= 60


def test_interval_of_a_share_equals_scipys():
    for found, count in ((0, 20), (3, 17), (20, 20), (63, 64)):
        expected = binomtest(found, count).proportion_ci(0.95, "wilson")
        assert wilson(found / count, count, 0.95) == pytest.approx(tuple(expected), abs=1e-12)
    assert all(map(math.isnan, wilson(math.nan, 0, 0.95)))


def test_interval_of_an_auroc_equals_that_of_every_pair_one_by_one():
    """DeLong's variance from its definition, on scores with ties."""
    rng = np.random.default_rng(0)
    labels, scores = np.repeat([0, 1], [9, 14]), np.append(rng.integers(0, 6, 9), rng.integers(2, 9, 14)).astype(float)
    bad, good = scores[labels == 1], scores[labels == 0]
    wins = (bad[:, None] > good) + 0.5 * (bad[:, None] == good)
    variance = wins.mean(axis=1).var(ddof=1) / 14 + wins.mean(axis=0).var(ddof=1) / 9
    odds, half = np.log(wins.mean() / (1 - wins.mean())), 1.959964 * variance**0.5 / (wins.mean() * (1 - wins.mean()))
    expected = [1 / (1 + np.exp(-end)) for end in (odds - half, odds + half)]
    assert image_metrics(labels, scores, 0.0, 0.1)["image_auroc"][1:] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("count", "least"), [(3, 0.43), (20, 0.83), (100, 0.96)])
def test_intervals_of_a_perfect_separation_say_how_few_images_it_was(count, least):
    """All of these were 1 to 1, with three images as with a thousand."""
    labels = np.repeat([0, 1], [count, count])
    estimates = image_metrics(labels, labels + 0.0, 0.5, 0.1)
    alarms = estimates.pop("false_alarm_rate")
    assert alarms[:2] == (0.0, 0.0) and alarms.high == pytest.approx(1 - estimates["recall"].low)
    for name, estimate in estimates.items():
        assert estimate.value == estimate.high == 1.0, name
        assert least < estimate.low < 1, name


@pytest.mark.parametrize("invisible", [0.0, 0.1])
def test_intervals_cover_the_truth_of_nearly_perfect_detectors(invisible):
    """Twenty of either kind far apart, and a tenth of the defects that nothing can see: often there is no error."""
    recall, covered, many = 1 - invisible, {}, 20000
    drawn = np.random.default_rng(0).normal(size=2 * many)
    drawn[many + round(many * invisible) :] = 20.0
    truth = {
        "image_auroc": 1 - invisible / 2,
        "image_prauc": average_precision(np.repeat([0, 1], many), drawn),
        "recall": recall,
        "f1": 2 * recall / (1 + recall),
        "false_alarm_rate": 0.0,
    }
    for seed in range(150):
        rng = np.random.default_rng(seed)
        scores = np.append(rng.normal(size=20), np.where(rng.random(20) >= invisible, 20.0, rng.normal(size=20)))
        estimates = image_metrics(np.repeat([0, 1], 20), scores, 10.0, 0.1, resamples=100)
        for name in truth:
            covered.setdefault(name, []).append(estimates[name].low <= truth[name] <= estimates[name].high)
    assert min(map(np.mean, covered.values())) >= 0.9, {name: np.mean(hits) for name, hits in covered.items()}


def test_image_metrics_of_one_seed_are_repeatable_however_many_are_resampled_at_once(monkeypatch):
    rng = np.random.default_rng(3)
    labels, scores = np.repeat([0, 1], 20), rng.normal(size=40)
    first = image_metrics(labels, scores, 0.0, 0.1, seed=5, resamples=50)
    assert first == image_metrics(labels, scores, 0.0, 0.1, seed=5, resamples=50)
    assert first != image_metrics(labels, scores, 0.0, 0.1, seed=6, resamples=50)
    monkeypatch.setattr("msad.models.metrics.image_metrics._MOST_COUNTS", 7 * 40)
    pieces = image_metrics(labels, scores, 0.0, 0.1, seed=5, resamples=2000)
    assert pieces["image_prauc"].low == pytest.approx(first["image_prauc"].low, abs=0.1)


def test_image_metrics_refuse_a_threshold_or_rate_without_meaning():
    with pytest.raises(ModelError, match="threshold is NaN"):
        image_metrics([0, 1], [0.0, 1.0], float("nan"), 0.1)
    with pytest.raises(ModelError, match=r"lies in \[0, 1\]"):
        image_metrics([0, 1], [0.0, 1.0], 0.5, 1.5)
