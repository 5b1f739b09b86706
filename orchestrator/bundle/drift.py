"""Whether the images of today are still like those that a model was made for: its alarms, its scores, plain statistics.

A bundle keeps, of each held-out good image, the score that it got from a scorer that had not seen it, and its plain
statistics (`msad.data_io.image_statistics`). What is seen later is compared with them: the scores and each statistic by
the two-sample test of Kolmogorov and Smirnov, the share of alarms by Fisher's exact test, one-sided. All are exact for
so few images, if tomorrow's good ones are drawn like the held-out ones; of each other they may depend as they like,
since what is told has been through Holm's correction ("A simple sequentially rejective multiple test procedure", 1979):
of a hundred comparisons of images of which nothing has changed at most one tells of anything.

Defects are seen too: where they are many, alarms and scores say so, rightly, and statistics hardly move.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import scipy  # its parts are loaded where they are used first: no training needs its statistics

from msad.data_io.image_statistics import STATISTICS

RATE = 0.01
"""Chance that a comparison tells of something although nothing has changed."""

FEWEST = 10  # images: one alone never tells of anything
SCORE, ALARMS = "score", "alarms"
_WORDS = {
    "brightness": ("darker", "brighter"),
    "contrast": ("less contrast", "more contrast"),
    "sharpness": ("less sharp", "sharper"),
    "noise": ("less noise", "more noise"),
    "pixels": ("fewer pixels", "more pixels"),
}

Values = Mapping[str, Sequence[float]]
"""By `score` and the names of `STATISTICS` a value per image; there need not be as many of each."""


@dataclass(frozen=True)
class Finding:
    """Something that has left what it was: its name, what it is in words, the medians then and now, the test's p."""

    name: str
    words: str
    then: float
    now: float
    p: float


@dataclass(frozen=True)
class Drift:
    """What a comparison of `images` with `held_out` good ones tells, at a false-alarm rate; `reason`: why not, if not.

    `findings` come in the order of their p-values, the smallest first.
    """

    images: int
    held_out: int
    rate: float = RATE
    findings: list[Finding] = field(default_factory=list)
    reason: str = ""

    @property
    def words(self) -> str:
        """The findings in a sentence without a full stop; empty where there are none."""
        return ", ".join(one.words for one in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return asdict(self)


def compare(reference: Values | None, threshold: float, seen: Values, rate: float = RATE) -> Drift:
    """Compare images with a bundle's held-out good ones.

    Parameters
    ----------
    reference
        Of the held-out images, as a bundle's provenance has it; None in bundles that were made before there was one.
    threshold
        Scores above it are alarms.
    seen
        Of the images that are compared, in the same form.
    rate
        See `RATE`.
    """
    images = len(seen[SCORE])
    if not reference:
        return Drift(images, 0, rate, reason="the model was made before its held-out images were measured")
    held_out = len(reference[STATISTICS[0]])
    if images < FEWEST:
        return Drift(images, held_out, rate, reason=f"fewer than {FEWEST} images tell nothing of a drift")
    tested = differences(reference, threshold, seen)
    return Drift(images, held_out, rate, [tested[place] for place in holm([one.p for one in tested], rate)])


def differences(reference: Values, threshold: float, seen: Values) -> list[Finding]:
    """Test everything, each by itself: what has changed and what has not."""
    names = [name for name in (SCORE, *STATISTICS) if name in reference and name in seen]
    found = [_alarms(*(np.asarray(values[SCORE]) > threshold for values in (reference, seen)))]
    for name in names:
        then, now = (np.asarray(values[name], np.float64) for values in (reference, seen))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of an exact p that is too long to compute
            p = float(scipy.stats.ks_2samp(then, now).pvalue)
        found.append(Finding(name, _words(name, then, now), float(np.median(then)), float(np.median(now)), p))
    return found


def holm(p_values: Sequence[float], rate: float) -> list[int]:
    """Return the places of the p-values that Holm's correction leaves, the smallest first."""
    order = np.argsort(p_values, kind="stable").tolist()
    for rank, place in enumerate(order):
        if p_values[place] > rate / (len(order) - rank):
            return order[:rank]
    return order


def _alarms(then: np.ndarray, now: np.ndarray) -> Finding:
    table = [[int(now.sum()), int((~now).sum())], [int(then.sum()), int((~then).sum())]]
    p = float(scipy.stats.fisher_exact(table, alternative="greater").pvalue)
    words = f"{now.mean():.0%} of the images raise an alarm, of the held-out ones {then.mean():.0%} did"
    return Finding(ALARMS, words, float(then.mean()), float(now.mean()), p)


def _words(name: str, then: np.ndarray, now: np.ndarray) -> str:
    before, after = float(np.median(then)), float(np.median(now))
    if name == SCORE:
        kind = "higher" if after > before else "lower" if after < before else "spread otherwise"
        return f"scores are {kind} (median {after:.3g}, of the held-out images {before:.3g})"
    low, first, third, high = np.quantile(then, (0.05, 0.25, 0.75, 0.95))
    if not before or abs(after - before) < (third - first) / 2:
        middle = [f"{part:.3g}" for part in np.quantile(now, (0.05, 0.95))]
        return f"{name} is spread otherwise ({' to '.join(middle)}, of the held-out images {low:.3g} to {high:.3g})"
    change = 100 * (after / before - 1)
    less, more = _WORDS[name]
    return f"{more if change > 0 else less} by {abs(change):.0f} %"
