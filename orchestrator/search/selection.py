"""How well the validation figure chose: its rank correlation with the test figure, and what the choice cost.

For the report after a study alone; nothing here is ever fed back into a search. Published rank correlations of a
synthetic validation and a real test are few and mixed (Fung et al., arXiv 2310.10461), so every study may measure its
own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from msad.leaderboard_columns import SEED_FIGURES

FIGURES = ("image_auroc", "pixel_auroc", "aupro_30")
FEWEST_TO_RANK = 3  # two trials correlate at +1 or -1, whatever they are


@dataclass(frozen=True)
class SelectionReport:
    """A study's choice against what the test split says of all its trials, for one test figure.

    Parameters
    ----------
    spearman
        Rank correlation of validation and test over the trials, in [-1, 1]; equal values share their mean rank.
    gap
        `oracle` - `chosen`, 0 or more: what choosing by validation gave away.
    chosen
        Test figure of the trial of the highest validation value, the earliest of equals.
    oracle
        The highest test figure of any trial. Only a report may know it.
    random_mean
        The mean test figure: what a trial drawn at random has on average.
    trials
        How many trials have both values; the others count nowhere but in `chosen`.
    """

    spearman: float
    gap: float
    chosen: float
    oracle: float
    random_mean: float
    trials: int


def report_selection(trials: pd.DataFrame, figure: str = "image_auroc") -> SelectionReport:
    """Compare the trials' validation values with one of their test figures.

    Parameters
    ----------
    trials
        One row per complete trial in the order they were suggested, with the columns `validation` (the objective, which
        was maximised) and `figure`. NaN is a value that is not known.
    figure
        Column of a test figure of which more is better.

    Returns
    -------
    SelectionReport
        `spearman` is NaN with fewer than 3 trials, and where all validation or all test values are equal: nothing is
        ranked then. `chosen` and `gap` are NaN where the chosen trial has no test figure; another trial is not put in
        its place. Without a trial that has both values everything is NaN and `trials` is 0.
    """
    known = trials[["validation", figure]].dropna()
    validation, test = known["validation"].to_numpy(float), known[figure].to_numpy(float)
    if not len(known):
        return SelectionReport(math.nan, math.nan, math.nan, math.nan, math.nan, 0)
    chosen = float(trials.loc[trials["validation"].idxmax(), figure])  # idxmax is the first of equals
    oracle = float(test.max())
    return SelectionReport(
        spearman=_spearman(validation, test),
        gap=oracle - chosen,
        chosen=chosen,
        oracle=oracle,
        random_mean=float(test.mean()),
        trials=len(known),
    )


def seed_statistics(tests: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return `FIGURE_mean` and `FIGURE_sd` of several seeds' test figures.

    Parameters
    ----------
    tests
        The test figures of each seed's model; of `SEED_FIGURES` those that there are.

    Returns
    -------
    dict
        The sample standard deviation (n - 1). Empty with fewer than two seeds, which have no spread; a figure that is
        NaN or missing for a seed is left out, so that a mean is always over all seeds.
    """
    if len(tests) < 2:
        return {}
    statistics = {}
    for figure in SEED_FIGURES:
        values = np.array([test.get(figure, math.nan) for test in tests], float)
        if not np.isnan(values).any():
            statistics |= {f"{figure}_mean": float(values.mean()), f"{figure}_sd": float(values.std(ddof=1))}
    return statistics


def _spearman(first: np.ndarray, second: np.ndarray) -> float:
    if len(first) < FEWEST_TO_RANK or np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    ranks = [pd.Series(values).rank().to_numpy() for values in (first, second)]
    return float(np.corrcoef(*ranks)[0, 1])
