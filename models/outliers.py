"""Which of many good images are unlike the others by their scores: perhaps they are not good.

Shapes: N images.
"""

from __future__ import annotations

import numpy as np

FEWEST = 20
"""Scores below which nothing is called unusual: so few do not tell what is usual."""

FAR = 6.0
"""Deviations above the median from which on an image stands out."""


def deviations(score_N: np.ndarray) -> np.ndarray:
    """Return how far each score is above the median, in deviations that no outlier has a say in, N, float64.

    The unit is the distance from the median to the upper quartile over what it is of a normal distribution: scores of
    good images have a longer tail above than below. 0 where the scores have no spread.
    """
    score_N = np.asarray(score_N, np.float64)
    median, upper = np.quantile(score_N, [0.5, 0.75])
    unit = (upper - median) / 0.6745
    return (score_N - median) / unit if unit > 0 else np.zeros(len(score_N))


def stand_out(score_N: np.ndarray) -> np.ndarray:
    """Return which images stand out among the others, bool N; none where they are fewer than `FEWEST`."""
    return deviations(score_N) > FAR if len(score_N) >= FEWEST else np.zeros(len(score_N), bool)
