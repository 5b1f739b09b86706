from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score, roc_curve

from models.errors import ModelError
from models.metrics import average_precision, bootstrap_interval, f1_at, image_auroc, prevalence, recall_at_fpr


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
    assert math.isnan(bootstrap_interval(image_auroc, labels, scores)[0])


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


def test_bootstrap_interval_covers_the_true_auroc_as_often_as_it_claims():
    # Two unit normals one deviation apart have AUROC Φ(1/√2).
    truth = 0.5 * (1 + math.erf(0.5))
    labels = np.repeat([0, 1], 40)
    hits = 0
    for seed in range(60):
        scores = np.random.default_rng(seed).normal(size=80) + labels
        low, high = bootstrap_interval(image_auroc, labels, scores, confidence=0.9, resamples=200)
        assert low <= image_auroc(labels, scores) <= high
        hits += low <= truth <= high
    assert 45 <= hits <= 60


def test_bootstrap_interval_of_one_seed_is_repeatable():
    rng = np.random.default_rng(3)
    labels, scores = np.repeat([0, 1], 20), rng.normal(size=40)
    first = bootstrap_interval(average_precision, labels, scores, seed=5, resamples=50)
    assert first == bootstrap_interval(average_precision, labels, scores, seed=5, resamples=50)
    assert first != bootstrap_interval(average_precision, labels, scores, seed=6, resamples=50)
