"""Metrics of image scores, exact, with a stated meaning for every odd input. For pixels see `pixel_metrics`.

All of them are read off the same two counts: the anomalous and the good images at or above each distinct score. One
vectorised pass makes these counts for a thousand resamples, so that confidence intervals of all metrics cost little.

Shapes: one label and one score per image, N of them; label 1 (or True) = anomalous, higher score = more anomalous.
K distinct scores, from the highest to the lowest; R resamples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from models.errors import ModelError

_MOST_COUNTS = 1 << 22  # resampled images held at once


class Estimate(NamedTuple):
    """A metric of the images at hand, and the ends of its confidence interval; all three nan where it is undefined."""

    value: float
    low: float
    high: float


def image_auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Compute the chance that an anomalous image scores above a good one; ties count half.

    Returns
    -------
    float
        In [0, 1]; 0.5 for constant scores; nan when either class is missing.

    Raises
    ------
    ModelError
        Labels and scores differ in number, a label is neither 0 nor 1, or a score is NaN.
    """
    return float(_Ranked.of(labels, scores).counts().auroc()[0])


def average_precision(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Compute the area under the precision–recall curve as Σ (recall step × precision), equal scores in one step.

    Parameters
    ----------
    labels, scores
        N each.
    weights
        How many items each one stands for (for example after leaving out most of the normal pixels); 1 if None.

    Returns
    -------
    float
        In [0, 1]; the prevalence for constant scores; nan without an anomalous item. Its chance level is `prevalence`.

    Raises
    ------
    ModelError
        As `image_auroc`.
    """
    ranked = _Ranked.of(labels, scores)
    weights_N = None if weights is None else np.asarray(weights, dtype=np.float64).ravel()[ranked.order_N]
    return float(ranked.counts(weights_N).average_precision()[0])


def prevalence(labels: ArrayLike) -> float:
    """Compute the share of anomalous items: what `average_precision` gives to guessing; nan for none at all."""
    labels = np.asarray(labels)
    return float(np.mean(labels != 0)) if labels.size else float("nan")


def f1_at(labels: ArrayLike, scores: ArrayLike, threshold: float) -> float:
    """Compute F1 of the verdict `score > threshold`, the verdict that `predict` gives.

    Returns
    -------
    float
        In [0, 1]; nan when no image is anomalous; 0 when none of the anomalous ones is found.

    Raises
    ------
    ModelError
        As `image_auroc`, or the threshold is NaN.
    """
    ranked = _Ranked.of(labels, scores)
    return float(ranked.counts().f1(ranked.flagged(threshold))[0])


def recall_at(labels: ArrayLike, scores: ArrayLike, threshold: float) -> float:
    """Compute the share of the anomalous images with `score > threshold`; nan when there is none.

    Raises
    ------
    ModelError
        As `f1_at`.
    """
    ranked = _Ranked.of(labels, scores)
    return float(ranked.counts().recall(ranked.flagged(threshold))[0])


def recall_at_fpr(labels: ArrayLike, scores: ArrayLike, false_positive_rate: float) -> float:
    """Compute the greatest recall at any threshold that flags at most this share of the good images.

    With fewer good images than 1 / rate that is the recall without any false positive.

    Returns
    -------
    float
        In [0, 1]; nan when either class is missing.

    Raises
    ------
    ModelError
        As `image_auroc`, or the rate is outside [0, 1].
    """
    return float(_Ranked.of(labels, scores).counts().recall_at_fpr(false_positive_rate)[0])


def image_metrics(
    labels: ArrayLike,
    scores: ArrayLike,
    threshold: float,
    false_positive_rate: float,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Compute every metric of the image scores with a confidence interval by the percentile bootstrap (Efron, 1979).

    Good and anomalous images are drawn apart, so that every resample keeps both classes and their ratio. All metrics
    share the resamples. What the images at hand do not show no resample can: where they are told apart without an
    error the interval is 1 to 1, however few they are.

    Parameters
    ----------
    labels, scores
        N each.
    threshold, false_positive_rate
        Of `f1_at` and `recall_at`, and of `recall_at_fpr`.
    confidence
        Share of resamples inside the interval, in (0, 1).
    resamples, seed
        How many draws, and what decides them.

    Returns
    -------
    dict[str, Estimate]
        `image_auroc`, `image_prauc` (average precision), `f1`, `recall`, `recall_at_fpr`.

    Raises
    ------
    ModelError
        As those functions.
    """
    ranked = _Ranked.of(labels, scores)
    flagged = ranked.flagged(threshold)

    def measure(counts: _Counts) -> dict[str, np.ndarray]:
        return {
            "image_auroc": counts.auroc(),
            "image_prauc": counts.average_precision(),
            "f1": counts.f1(flagged),
            "recall": counts.recall(flagged),
            "recall_at_fpr": counts.recall_at_fpr(false_positive_rate),
        }

    measured = measure(ranked.counts())
    draws = [measure(ranked.counts(weights_RN)) for weights_RN in ranked.resamples(resamples, seed)]
    tail = (1 - confidence) / 2
    estimates = {}
    for name, (value,) in measured.items():
        low, high = np.quantile(np.concatenate([draw[name] for draw in draws]), [tail, 1 - tail])
        estimates[name] = Estimate(float(value), float(low), float(high))
    return estimates


@dataclass(frozen=True)
class _Ranked:
    """Images from the highest score to the lowest: `order_N` takes them there, `ends_K` ends runs of equal scores."""

    scores_N: np.ndarray
    anomalous_N: np.ndarray
    order_N: np.ndarray
    ends_K: np.ndarray

    @classmethod
    def of(cls, labels: ArrayLike, scores: ArrayLike) -> _Ranked:
        labels, scores = np.asarray(labels).ravel(), np.asarray(scores).ravel()
        if labels.shape != scores.shape:
            raise ModelError(f"as many labels as scores are needed, got {len(labels)} and {len(scores)}")
        if labels.dtype != bool and not np.isin(labels, (0, 1)).all():
            raise ModelError("labels are 0 (good) or 1 (anomalous)")
        if np.issubdtype(scores.dtype, np.floating) and np.isnan(scores).any():
            raise ModelError(f"{int(np.isnan(scores).sum())} of {len(scores)} scores are NaN: the model is broken")
        order = np.argsort(scores)[::-1]
        scores = scores[order]
        ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], [True] * bool(len(scores))))
        return cls(scores, labels.astype(bool)[order], order, ends)

    def flagged(self, threshold: float) -> int:
        """Return how many of the K distinct scores are above a threshold."""
        if np.isnan(threshold):
            raise ModelError("the threshold is NaN: choose it with models.scoring.threshold")
        return int(np.sum(self.scores_N[self.ends_K] > threshold))

    def counts(self, weights_RN: np.ndarray | None = None) -> _Counts:
        """Count, each image as often as its weight says; once if None."""
        weights_RN = np.atleast_2d(np.ones(len(self.scores_N), np.int64) if weights_RN is None else weights_RN)
        found_RK, false_RK = (
            np.cumsum(weights_RN * chosen_N, axis=1)[:, self.ends_K]
            for chosen_N in (self.anomalous_N, ~self.anomalous_N)
        )
        return _Counts(found_RK, false_RK)

    def resamples(self, number: int, seed: int) -> Iterator[np.ndarray]:
        """Yield how often each image is drawn, R×N at a time, `number` rows in all."""
        rng = np.random.default_rng(seed)
        at_once = max(1, _MOST_COUNTS // max(1, len(self.scores_N)))
        for first in range(0, number, at_once):
            weights_RN = np.zeros((min(at_once, number - first), len(self.scores_N)), np.int64)
            for members in (np.flatnonzero(self.anomalous_N), np.flatnonzero(~self.anomalous_N)):
                if len(members):
                    shares = np.full(len(members), 1 / len(members))
                    weights_RN[:, members] = rng.multinomial(len(members), shares, size=len(weights_RN))
            yield weights_RN


@dataclass(frozen=True)
class _Counts:
    """Anomalous and good images at or above each distinct score, R×K; every metric gives R numbers."""

    found_RK: np.ndarray
    false_RK: np.ndarray

    def auroc(self) -> np.ndarray:
        true_RK, false_RK = (np.diff(counts, axis=1, prepend=0) for counts in (self.found_RK, self.false_RK))
        beaten_RK = 2 * self.false_RK[:, -1:] - 2 * self.false_RK + false_RK  # twice those below, ties once
        return _ratio(np.sum(true_RK * beaten_RK, axis=1), 2 * _last(self.found_RK) * _last(self.false_RK))

    def average_precision(self) -> np.ndarray:
        true_RK = np.diff(self.found_RK, axis=1, prepend=0)
        precision_RK = np.nan_to_num(_ratio(self.found_RK, self.found_RK + self.false_RK))
        return np.minimum(_ratio(np.sum(true_RK * precision_RK, axis=1), _last(self.found_RK)), 1.0)

    def recall(self, flagged: int) -> np.ndarray:
        return _ratio(_at(self.found_RK, flagged), _last(self.found_RK))

    def f1(self, flagged: int) -> np.ndarray:
        found_R, false_R, all_R = _at(self.found_RK, flagged), _at(self.false_RK, flagged), _last(self.found_RK)
        return np.where(all_R > 0, _ratio(2 * found_R, found_R + false_R + all_R), np.nan)

    def recall_at_fpr(self, rate: float) -> np.ndarray:
        if not 0 <= rate <= 1:
            raise ModelError(f"a false-positive rate lies in [0, 1], got {rate}")
        good_R, all_R = _last(self.false_RK), _last(self.found_RK)
        allowed_R = np.floor(rate * good_R + 1e-9)
        within_R = np.sum(self.false_RK <= allowed_R[:, None], axis=1)
        found_R = np.take_along_axis(np.pad(self.found_RK, ((0, 0), (1, 0))), within_R[:, None], axis=1)[:, 0]
        return np.where(good_R > 0, _ratio(found_R, all_R), np.nan)


def _last(counts_RK: np.ndarray) -> np.ndarray:
    return _at(counts_RK, counts_RK.shape[1])


def _at(counts_RK: np.ndarray, flagged: int) -> np.ndarray:
    """Take the counts of the `flagged` highest of the K distinct scores."""
    return counts_RK[:, flagged - 1] if flagged else np.zeros(len(counts_RK), counts_RK.dtype)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divide, to nan by zero."""
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)
