"""Confidence intervals that stay honest where few images were all told apart: no interval ends where it begins.

A bootstrap knows nothing but the images at hand: where none is on the wrong side, no resample has one, and its interval
is 1 to 1 however few they are. So shares have Wilson's interval, the AUROC DeLong's, and what has no formula of its own
a bootstrap that is never narrower than Wilson's interval.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import special

Ends = tuple[float, float]


def wilson(share: float, count: float, confidence: float) -> Ends:
    """Return the interval of a share among `count` images (Wilson, "Probable inference", JASA 22, 1927).

    All shares that a count of this size does not contradict: of none among n images it ends near 4 / n, which is a
    little above the rule of three. nan for a count of 0 or a share that is nan.
    """
    if not count or math.isnan(share):
        return math.nan, math.nan
    z = float(special.ndtri((1 + confidence) / 2))
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))


def delong(auroc: float, variance: float, anomalous: int, good: int, confidence: float) -> Ends:
    """Return the interval of an AUROC, symmetric in its log odds so that it stays within 0 and 1.

    The variance is that of DeLong, DeLong and Clarke-Pearson ("Comparing the areas under two or more correlated
    receiver operating characteristic curves", Biometrics 44, 1988), the log odds are Pepe's ("The statistical
    evaluation of medical tests", 2003). The rule for what they can't do: where the classes are told apart without an
    error (or not at all), or one of them has one image, that variance is 0 or unknown. The AUROC's is never above
    θ (1 - θ) / min(m, n) for m anomalous and n good images (van Dantzig, 1951), the variance of a share among
    min(m, n): Wilson's interval of that is taken. 20 images of either kind, all told apart, give 0.84 to 1.

    Parameters
    ----------
    auroc, variance
        As measured; nan where it is unknown.
    anomalous, good
        Images of each class.
    """
    fewer = min(anomalous, good)
    if not 0 < auroc < 1 or not variance > 0:
        return wilson(auroc, fewer, confidence)
    odds, z = float(special.logit(auroc)), float(special.ndtri((1 + confidence) / 2))
    half = z * math.sqrt(variance) / (auroc * (1 - auroc))
    return float(special.expit(odds - half)), float(special.expit(odds + half))


def f1_interval(
    found: int, missed: int, false_alarms: int, correct: int, confidence: float, draws: int, seed: int
) -> Ends:
    """Return the interval of F1 from what recall and false-alarm rate may be.

    Both are drawn from their posterior under Jeffreys' prior (Goutte and Gaussier, "A probabilistic interpretation of
    precision, recall and F-score", ECIR 2005), at the numbers of images at hand; the measured F1 always lies inside.
    nan without an anomalous image.
    """
    anomalous, good = found + missed, false_alarms + correct
    if not anomalous:
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    hits_R = anomalous * rng.beta(found + 0.5, missed + 0.5, draws)
    alarms_R = good * rng.beta(false_alarms + 0.5, correct + 0.5, draws)
    tail, measured = (1 - confidence) / 2, 2 * found / (found + false_alarms + anomalous)
    low, high = np.quantile(2 * hits_R / (hits_R + alarms_R + anomalous), [tail, 1 - tail])
    return min(measured, float(low)), max(measured, float(high))


def outer(*intervals: Ends) -> Ends:
    """Return the smallest interval around some; nan where one is."""
    lows, highs = zip(*intervals, strict=True)
    return float(np.min(lows)), float(np.max(highs))
