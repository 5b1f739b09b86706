"""Metrics of image scores, exact, with a stated meaning for every odd input. For pixels see `pixel_metrics`.

All of them are read off the same two counts: the anomalous and the good images at or above each distinct score. One
vectorised pass makes these counts for a thousand resamples, so that a bootstrap costs little.

Shapes: one label and one score per image, N of them; label 1 (or True) = anomalous, higher score = more anomalous.
K distinct scores, from the highest to the lowest; R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from msad.models.errors import ModelError
from msad.models.metrics.intervals import delong, f1_interval, outer, wilson

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
    """Compute every metric of the image scores with a confidence interval.

    Shares of images, which recall and false-alarm rate are, have Wilson's interval, the AUROC DeLong's and F1 that of
    Goutte and Gaussier (see `msad.models.metrics.intervals`). Average precision and the recall at a false-positive
    rate have the percentile bootstrap (Efron, 1979), good and anomalous images drawn apart, so that every resample
    keeps both classes and their ratio; it is widened to Wilson's interval of a share among the anomalous images, since
    of images that were told apart without an error no resample has one (for average precision see Boyd, Eng and Page,
    "Area under the precision-recall curve: point estimates and confidence intervals", ECML PKDD 2013).

    Parameters
    ----------
    labels, scores
        N each.
    threshold, false_positive_rate
        Of `f1_at` and `recall_at`, and of `recall_at_fpr`.
    confidence
        How often such intervals hold the true value, in (0, 1).
    resamples, seed
        How many draws, and what decides them.

    Returns
    -------
    dict[str, Estimate]
        `image_auroc`, `image_prauc` (average precision), `f1`, `recall`, `recall_at_fpr`, and `false_alarm_rate`, the
        share of the good images above the threshold.

    Raises
    ------
    ModelError
        As those functions.
    """
    ranked = _Ranked.of(labels, scores)
    flagged, counts = ranked.flagged(threshold), ranked.counts()

    def drawn(counts: _Counts) -> dict[str, np.ndarray]:
        return {
            "image_prauc": counts.average_precision(),
            "recall_at_fpr": counts.recall_at_fpr(false_positive_rate),
        }

    found, false_alarms = int(_at(counts.found_RK, flagged)[0]), int(_at(counts.false_RK, flagged)[0])
    anomalous, good = int(_last(counts.found_RK)[0]), int(_last(counts.false_RK)[0])
    auroc, variance = (float(figure) for (figure,) in counts.delong())
    recall = float(counts.recall(flagged)[0])
    false_alarm_rate = false_alarms / good if good else math.nan
    missed, correct = anomalous - found, good - false_alarms
    f1_ends = f1_interval(found, missed, false_alarms, correct, confidence, resamples, seed)
    estimates = {
        "image_auroc": Estimate(auroc, *delong(auroc, variance, anomalous, good, confidence)),
        "f1": Estimate(float(counts.f1(flagged)[0]), *f1_ends),
        "recall": Estimate(recall, *wilson(recall, anomalous, confidence)),
        "false_alarm_rate": Estimate(false_alarm_rate, *wilson(false_alarm_rate, good, confidence)),
    }
    draws = [drawn(ranked.counts(weights_RN)) for weights_RN in ranked.resamples(resamples, seed)]
    tail = (1 - confidence) / 2
    for name, (value,) in drawn(counts).items():
        low, high = np.quantile(np.concatenate([draw[name] for draw in draws]), [tail, 1 - tail])
        ends = outer((float(low), float(high)), wilson(float(value), anomalous, confidence))
        estimates[name] = Estimate(float(value), *ends)
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
            raise ModelError("the threshold is NaN: choose it with msad.models.thresholds.threshold")
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
        true_RK, false_RK = self._at_each_score()
        beaten_RK = 2 * self.false_RK[:, -1:] - 2 * self.false_RK + false_RK  # twice those below, ties once
        return _ratio(np.sum(true_RK * beaten_RK, axis=1), 2 * _last(self.found_RK) * _last(self.false_RK))

    def delong(self) -> tuple[np.ndarray, np.ndarray]:
        """AUROC and its variance by DeLong et al. (1988); the variance is nan where a class has fewer than two."""
        true_RK, false_RK = self._at_each_score()
        found_R, good_R, auroc_R = _last(self.found_RK), _last(self.false_RK), self.auroc()
        # The share of good images that an anomalous one of this score beats; of anomalous ones that beat a good one.
        beaten_RK = _ratio(self.false_RK[:, -1:] - self.false_RK + false_RK / 2, good_R[:, None])
        beating_RK = _ratio(self.found_RK - true_RK / 2, found_R[:, None])
        variance_R = np.zeros(len(auroc_R))
        for shares_RK, images_RK, count_R in ((beaten_RK, true_RK, found_R), (beating_RK, false_RK, good_R)):
            squares_R = np.sum(images_RK * np.square(shares_RK - auroc_R[:, None]), axis=1)
            variance_R += _ratio(squares_R, count_R * (count_R - 1))
        return auroc_R, variance_R

    def _at_each_score(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the anomalous and the good images of each distinct score, R×K."""
        return np.diff(self.found_RK, axis=1, prepend=0), np.diff(self.false_RK, axis=1, prepend=0)

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
