"""From scores of good images to a threshold, and what so few of them can promise about false alarms.

A score of a good image says something about tomorrow's only if it comes from the scorer that is delivered and if that
scorer had not seen the image. The delivered one is fitted on all held-out images; so each of them is scored by the one
that the others make, which is nearly the same (leave-one-out: Hennhöfer and Preisach, "Leave-one-out-, bootstrap- and
cross-conformal anomaly detectors", arXiv 2402.16388). Of n + 1 such scores, the n held-out ones and tomorrow's, each
is equally likely to be the highest: n images certify no rate of false alarms below 1 / (n + 1).

Shapes: B images of a batch, G good images, H×W pixels; a map is float32 B×1×H×W, higher = more anomalous.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy import special
from torch import Tensor

from msad.models.errors import ModelError
from msad.models.precision import full_float32
from msad.models.roi import Roi
from msad.models.scorer import Scorer, Scoring, Statistics, check_maps, fit_score, smooth_maps, statistics_of_moments

MISSED = 0.1
"""Share of the plain synthetic defects, and of the known ones, that may lie below the gap in which the threshold is."""

CONFIDENCE = 0.95


@dataclass(frozen=True)
class FalseAlarms:
    """What a threshold promises, if tomorrow's good images are like the held-out ones.

    Parameters
    ----------
    target
        The rate that was asked for.
    held_out
        Good images that the threshold rests on.
    expected
        The rate of false alarms is at most this on average over all models made like this one: (images above + 1) /
        (`held_out` + 1), never below 1 / (`held_out` + 1).
    at_most
        For 95 of 100 such models it is at most this (Clopper and Pearson, 1934; without an image above nearly 3 /
        `held_out`, the rule of three).
    """

    target: float
    held_out: int
    expected: float
    at_most: float

    @classmethod
    def of(cls, good_scores: np.ndarray, threshold: float, target: float) -> FalseAlarms:
        """Count the held-out images above a threshold."""
        held_out, above = len(good_scores), int(np.sum(good_scores > threshold))
        at_most = 1.0 if above == held_out else float(special.betaincinv(above + 1, held_out - above, CONFIDENCE))
        return cls(float(target), held_out, (above + 1) / (held_out + 1), at_most)

    @property
    def smallest(self) -> float:
        """The smallest rate that so many images can certify with any threshold."""
        return 1 / (self.held_out + 1)

    def to_dict(self) -> dict[str, float]:
        """Give plain values that JSON can hold."""
        return {**vars(self), "smallest": self.smallest}


class LeaveOneOut:
    """Scores images by the scorer that is delivered, fitted without the good image that they are made of.

    Parameters
    ----------
    scoring
        What is delivered.
    good_maps
        G×1×H×W each, by name, all finite; G at least 2.
    roi
        See `msad.models.scorer.Scorer`.
    usual_G
        Which of them the delivered scorer is fitted on, bool; None: all.
    changed
        How many of the last ones are the first images again, changed: an image is left out with what was made of it.

    Raises
    ------
    ModelError
        A map is missing, not finite, or of one image only.
    """

    @full_float32()
    def __init__(
        self,
        scoring: Scoring,
        good_maps: Mapping[str, Tensor],
        roi: Roi | None = None,
        usual_G: Tensor | None = None,
        changed: int = 0,
    ) -> None:
        check_maps(good_maps, scoring.map_names)
        self._scoring, self._roi = scoring, roi
        self._good = smooth_maps(scoring, good_maps, roi)
        maps = len(next(iter(self._good.values())))
        self.count = maps - changed
        if self.count < 2:
            raise ModelError("a threshold needs at least 2 good images: one is scored by what the others say")
        self._source_G = torch.cat([torch.arange(self.count), torch.arange(changed)])
        self._usual_G = torch.ones(maps, dtype=torch.bool) if usual_G is None else usual_G.cpu()
        self._usual_count = int(self._usual_G.sum())
        fitted_on = {name: maps[self._usual_G] for name, maps in self._good.items()}
        # About the mean of all: sums of squares of what is nearly zero lose no digits.
        self._centre = {name: maps.mean(dim=0) for name, maps in fitted_on.items()}
        self._sums = {name: self._moments(name, maps) for name, maps in fitted_on.items()}
        # Two numbers a map, which hide no image.
        self._score_2 = {name: fit_score(scoring, name, maps, roi) for name, maps in fitted_on.items()}

    def good(self) -> tuple[list[np.ndarray], np.ndarray]:
        """Return the map of each good image, float32 H×W, and their scores, G, float64."""
        maps, scores = zip(*self._scored(self._good, self._source_G.tolist()), strict=True)
        return [one.cpu().numpy() for one in maps], _together(scores)

    def good_scores(self) -> np.ndarray:
        """Return the score of each good image, G, float64."""
        return self.good()[1]

    def scores(self, maps: Mapping[str, Tensor], source_B: np.ndarray) -> np.ndarray:
        """Return the scores of images that were made of the good images at `source_B`, B, float64."""
        return _together(
            [score for _, score in self._scored(smooth_maps(self._scoring, maps, self._roi), source_B.tolist())]
        )

    def _scored(self, smoothed: Mapping[str, Tensor], sources: Iterable[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the map, H×W, and the score, 1, of each image."""
        for index, source in enumerate(sources):
            yield self._score({name: smoothed[name][index : index + 1] for name in self._good}, source)

    @torch.no_grad()
    @full_float32()
    def _score(self, one: Mapping[str, Tensor], source: int) -> tuple[Tensor, Tensor]:
        scorer = Scorer(self._scoring, {name: self._without(name, source) for name in self._good}, self._roi)
        map_11HW, score_1 = scorer.of_smoothed(one)
        return map_11HW[0, 0], score_1

    def _without(self, name: str, left_out: int) -> Statistics:
        """Return the statistics of all usual images but one."""
        made_of_it = self._usual_G & (self._source_G == left_out)
        of_one, counted = self._moments(name, self._good[name][made_of_it]), int(made_of_it.sum())
        first, second = (
            (of_all - of_it) / (self._usual_count - counted)
            for of_all, of_it in zip(self._sums[name], of_one, strict=True)
        )
        variance_1HW = (second - first.square()).clamp_min(0)
        calibration = self._scoring.calibration_of(name)
        statistics = statistics_of_moments(self._centre[name] + first, variance_1HW, calibration, self._roi)
        return dataclasses.replace(statistics, score_2=self._score_2[name])

    def _moments(self, name: str, maps_N1HW: Tensor) -> tuple[Tensor, Tensor]:
        """Sum the deviations from the centre and their squares, 1×H×W each."""
        away = maps_N1HW - self._centre[name]
        return away.sum(dim=0), away.square().sum(dim=0)


def _together(scores: Iterable[Tensor]) -> np.ndarray:
    scores = list(scores)
    return torch.cat(scores).double().cpu().numpy() if scores else np.empty(0)


def threshold(
    good_scores: np.ndarray,
    false_positive_rate: float = 0.03,
    plain_scores: np.ndarray | None = None,
    known_scores: np.ndarray | None = None,
) -> float:
    """Choose the score above which an image is called anomalous.

    Of the next good image and the n held-out ones each is equally likely to be the k-th highest, so it lies above the
    m-th lowest of the n with a chance of (n + 1 - m) / (n + 1): the lowest m that keeps this within the rate (conformal
    prediction: Vovk, Gammerman and Shafer, "Algorithmic learning in a random world", 2005), and the highest score where
    n is too small for the rate.

    Where n is too small for the rate, the held-out images say little: tomorrow's are a little different from all of
    them, and where plain defects score far higher, a threshold right above the good ones only collects false alarms. So
    there, in a gap between good images and plain synthetic defects, the threshold lies in the middle: the largest
    margin. Real defects may be fainter than those: where some are known, the gap ends at the lower of both.

    Parameters
    ----------
    good_scores
        Scores of good images by scorers that were not fitted on them, see `LeaveOneOut`.
    false_positive_rate
        At most this share of good images is to lie above, in [0, 1).
    plain_scores
        Scores of synthetic defects that cannot be missed; all but their lowest tenth bound the gap. None: no gap.
    known_scores
        Scores of known defects, which bound it likewise. They never lower the threshold into the good images.

    Returns
    -------
    float
        Without a gap one of the good scores: with fewer than 2 / rate - 1 images, the highest.

    Raises
    ------
    ModelError
        There is no score, one is not finite, or the rate is out of range.
    """
    scores = np.sort(np.asarray(good_scores, dtype=np.float64))
    if not scores.size or not np.isfinite(scores).all():
        raise ModelError(f"a threshold needs finite scores of good images, got {scores.size} scores")
    if not 0 <= false_positive_rate < 1:
        raise ModelError(f"a false-positive rate lies in [0, 1), got {false_positive_rate}")
    rank = int((len(scores) + 1) * false_positive_rate + 1e-9)
    if rank or plain_scores is None or not len(plain_scores):
        return float(scores[-max(1, rank)])
    highest = float(scores[-1])
    ends = [np.quantile(part, MISSED) for part in (plain_scores, known_scores) if part is not None and len(part)]
    return max(highest, (highest + float(min(ends))) / 2)
