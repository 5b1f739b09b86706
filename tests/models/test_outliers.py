"""Which scores stand out among many."""

from __future__ import annotations

import numpy as np
import pytest

from msad.models.outliers import FAR, FEWEST, deviations, stand_out


def test_deviations_of_normal_scores_are_theirs_whatever_their_scale():
    score_N = np.random.default_rng(0).normal(5, 3, 20_000)
    np.testing.assert_allclose(deviations(score_N), (score_N - 5) / 3, atol=0.15)


def test_scores_far_above_the_others_stand_out_and_have_no_say_in_what_is_far():
    score_N = np.random.default_rng(0).normal(0, 1, 100)
    score_N[:5] = 1000.0, 50.0, 12.0, -50.0, 2.0
    assert np.flatnonzero(stand_out(score_N)).tolist() == [0, 1, 2]
    assert deviations(score_N)[2] == pytest.approx(12, rel=0.3) and FAR < 12


def test_few_scores_and_equal_ones_have_none_that_stands_out():
    assert not stand_out(np.r_[np.zeros(FEWEST - 2), 1e9]).any()
    assert not stand_out(np.r_[np.ones(100), 1e9]).any()
    assert deviations(np.ones(30)).tolist() == [0.0] * 30
