"""Metrics of image scores, exact, with a stated meaning for every odd input. For pixels see `pixel_metrics`.

Shapes: one label and one score per image, N of them; label 1 (or True) = anomalous, higher score = more anomalous.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from models.errors import ModelError
from models.pixel_metrics import PixelMetrics, pixel_metrics

__all__ = [
    "PixelMetrics",
    "average_precision",
    "bootstrap_interval",
    "f1_at",
    "image_auroc",
    "pixel_metrics",
    "prevalence",
    "recall_at_fpr",
]

Metric = Callable[[np.ndarray, np.ndarray], float]


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
    anomalous, scores = _checked(labels, scores)
    good, bad = np.sort(scores[~anomalous]), scores[anomalous]
    if not len(good) or not len(bad):
        return float("nan")
    beaten = np.searchsorted(good, bad, side="left").sum() + np.searchsorted(good, bad, side="right").sum()
    return float(beaten / (2 * len(good) * len(bad)))


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
    anomalous, scores = _checked(labels, scores)
    if not anomalous.any():
        return float("nan")
    order = np.argsort(scores)[::-1]
    scores, anomalous = scores[order], anomalous[order]
    weight = np.ones(len(scores)) if weights is None else np.asarray(weights, dtype=np.float64)[order]
    ends = np.append(np.flatnonzero(scores[1:] != scores[:-1]), len(scores) - 1)
    found = np.cumsum(weight * anomalous)[ends]
    flagged = np.cumsum(weight)[ends]
    steps = np.diff(found, prepend=0.0)
    precision = np.divide(found, flagged, out=np.zeros_like(found), where=flagged > 0)
    return float(min(1.0, np.sum(steps * precision) / found[-1]))


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
    anomalous, scores = _checked(labels, scores)
    if np.isnan(threshold):
        raise ModelError("the threshold is NaN: choose it with models.scoring.threshold")
    if not anomalous.any():
        return float("nan")
    flagged = scores > threshold
    return float(2 * np.sum(flagged & anomalous) / (flagged.sum() + anomalous.sum()))


def recall_at_fpr(labels: ArrayLike, scores: ArrayLike, false_positive_rate: float) -> float:
    """Compute the greatest recall at any threshold that flags at most this share of the good images.

    Returns
    -------
    float
        In [0, 1]; nan when either class is missing.

    Raises
    ------
    ModelError
        As `image_auroc`, or the rate is outside [0, 1].
    """
    anomalous, scores = _checked(labels, scores)
    if not 0 <= false_positive_rate <= 1:
        raise ModelError(f"a false-positive rate lies in [0, 1], got {false_positive_rate}")
    good, bad = np.sort(scores[~anomalous]), scores[anomalous]
    if not len(good) or not len(bad):
        return float("nan")
    # The verdict is `score > threshold`, so a threshold at a good image's score does not flag that image.
    allowed = int(np.floor(false_positive_rate * len(good) + 1e-9))
    return float(np.mean(bad > good[-1 - allowed])) if allowed < len(good) else 1.0


def bootstrap_interval(
    metric: Metric,
    labels: ArrayLike,
    scores: ArrayLike,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Estimate a confidence interval of a metric by the percentile bootstrap (Efron, 1979).

    Good and anomalous images are drawn apart, so that every resample keeps both classes and their ratio.

    Parameters
    ----------
    metric
        Takes labels and scores, gives one number.
    labels, scores
        N each.
    confidence
        Share of resamples inside the interval, in (0, 1).
    resamples, seed
        How many draws, and what decides them.

    Returns
    -------
    tuple[float, float]
        Low and high; (nan, nan) where the metric itself is nan.

    Raises
    ------
    ModelError
        As `image_auroc`.
    """
    anomalous, scores = _checked(labels, scores)
    if np.isnan(metric(anomalous, scores)):
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    classes = [np.flatnonzero(anomalous), np.flatnonzero(~anomalous)]
    values = []
    for _ in range(resamples):
        index = np.concatenate([rng.choice(members, len(members)) for members in classes if len(members)])
        values.append(metric(anomalous[index], scores[index]))
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = np.asarray(labels).ravel(), np.asarray(scores).ravel()
    if labels.shape != scores.shape:
        raise ModelError(f"as many labels as scores are needed, got {len(labels)} and {len(scores)}")
    if labels.dtype != bool and not np.isin(labels, (0, 1)).all():
        raise ModelError("labels are 0 (good) or 1 (anomalous)")
    if np.issubdtype(scores.dtype, np.floating) and np.isnan(scores).any():
        raise ModelError(f"{int(np.isnan(scores).sum())} of {len(scores)} scores are NaN: the model is broken")
    return labels.astype(bool), scores
