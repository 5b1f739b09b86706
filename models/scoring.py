"""Choose the scoring of a trained model: good images against their synthetic defects, at no training cost.

Shapes: G good images, D synthetic ones, H×W pixels; maps are float32 G×1×H×W and D×1×H×W.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.errors import ModelError
from models.scorer import (
    CALIBRATIONS,
    IMAGE_SCORE,
    OWN,
    REDUCTIONS,
    Scorer,
    Scoring,
    Statistics,
    check_maps,
    fit_scorer,
    fit_statistics,
    reduce,
    smooth,
    standardise,
    threshold,
    weighted,
)
from models.synthesis.synthetic_defects import FAMILIES, GRADES, SyntheticSet

__all__ = [
    "Choice",
    "Scorer",
    "Scoring",
    "ValidationScore",
    "choose_scoring",
    "default_candidates",
    "fit_scorer",
    "threshold",
]

IMAGE_SHARE = 0.8
"""How much image AUROC counts in the validation score; the rest is pixel average precision."""

_NORMAL_PIXELS = 4096  # of one image, for the pixel average precision; all defect pixels are taken
_GOOD_AT_ONCE = 8

_Key = tuple[float, str, tuple[tuple[str, float], ...]]


@dataclass(frozen=True)
class ValidationScore:
    """What a search maximises: `score` = 0.8 × `image_auroc` + 0.2 × `pixel_ap`, each the mean over all groups.

    `per_group` holds `image_auroc` and `pixel_ap` by "family/grade".
    """

    score: float
    image_auroc: float
    pixel_ap: float
    per_group: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Choice:
    """The best scorer, fitted on all good images; how it did; and the cross-fitted scores.

    `good_scores`: of the good images, G. `plain_scores`: of the synthetic defects that cannot be missed.
    """

    scorer: Scorer
    validation: ValidationScore
    good_scores: np.ndarray = field(repr=False)
    plain_scores: np.ndarray = field(repr=False)


def default_candidates(map_names: Sequence[str], view_size: int) -> list[Scoring]:
    """List every single map and their equal blend, with each smoothing (0, 2, 4 pixels at 256), reduction, calibration.

    A model that scores images itself (`IMAGE_SCORE`) may keep that score beside any blend of its maps. The simplest
    come first: of equals, the first is chosen. `view_size` is the side in pixels of what the network sees at once,
    which smoothing is a share of: the image's, or a tile's.
    """
    shown = [name for name in map_names if name != IMAGE_SCORE] or list(map_names)
    blends = [{name: 1.0} for name in shown]
    if len(shown) > 1:
        blends.append(dict.fromkeys(shown, 1.0))
    reductions = (*REDUCTIONS, OWN) if IMAGE_SCORE in map_names else REDUCTIONS
    return [
        Scoring(weights, sigma * view_size / 256, reduction, calibration)
        for calibration in CALIBRATIONS
        for weights in blends
        for sigma in (0.0, 2.0, 4.0)
        for reduction in reductions
    ]


@torch.no_grad()
def choose_scoring(
    good_maps: Mapping[str, Tensor],
    defect_maps: Mapping[str, Tensor] | Iterable[Mapping[str, Tensor]],
    synthetic: SyntheticSet,
    candidates: Sequence[Scoring] | None = None,
) -> Choice:
    """Find the scoring that best tells good images from synthetic defects.

    Calibration must not be judged on the images it was fitted on. So while choosing, the good images are halved by
    the parity of their position; each half, with the synthetic images made of it, is scored with the statistics of the
    other. The two numbers per map that "none" needs hide nothing and come from all good images.

    Parameters
    ----------
    good_maps
        By name, G×1×H×W, float32.
    defect_maps
        By name, D×1×H×W, float32, on the same device; or the same in parts, one after the other: only one of them is
        in memory at once.
    synthetic
        The set that `defect_maps` was computed on; `source` points into the good images.
    candidates
        What to try; `default_candidates` if None.

    Returns
    -------
    Choice

    Raises
    ------
    ModelError
        Maps and sets do not fit together, a map is not finite, or there are fewer than two good images.
    """
    names = tuple(good_maps)
    _check_good(good_maps, synthetic)
    candidates = default_candidates(names, min(good_maps[names[0]].shape[-2:])) if candidates is None else candidates
    if not candidates:
        raise ModelError("there is no scoring to choose from")
    judge = _Judge(good_maps, synthetic, candidates)
    for first in range(0, judge.good_count, _GOOD_AT_ONCE):
        part = {name: maps[first : first + _GOOD_AT_ONCE] for name, maps in good_maps.items()}
        judge.look(part, np.arange(first, min(first + _GOOD_AT_ONCE, judge.good_count)))
    done = 0
    for part in [defect_maps] if isinstance(defect_maps, Mapping) else defect_maps:
        _check_defects(part, good_maps, synthetic, done)
        count = len(part[names[0]])
        judge.look(part, synthetic.source[done : done + count], first_defect=done)
        done += count
    if done != len(synthetic.images):
        raise ModelError(f"maps of {done} synthetic images, not {len(synthetic.images)}: compute the maps on this set")

    aurocs_KR = judge.image_aurocs()
    # A candidate whose image AUROC could not win even with a perfect pixel figure needs none.
    tried = sorted(enumerate(aurocs_KR.mean(axis=1).tolist()), key=lambda item: (-item[1], item[0]))
    best_score, best, precisions = -1.0, None, {}
    for position, auroc in tried:
        if IMAGE_SHARE * auroc + (1 - IMAGE_SHARE) < best_score:
            break
        key = _map_key(candidates[position])
        if key not in precisions:
            precisions[key] = judge.pixel_precisions(key)
        score = float(IMAGE_SHARE * auroc + (1 - IMAGE_SHARE) * precisions[key].mean())
        if best is None or (score, -position) > (best_score, -best):
            best_score, best = score, position
    scoring = candidates[best]
    image, pixel, scores = aurocs_KR[best], precisions[_map_key(scoring)], judge.scores(scoring)
    per_group = {
        name: {"image_auroc": float(a), "pixel_ap": float(p)}
        for name, a, p in zip(judge.group_names, image, pixel, strict=True)
    }
    validation = ValidationScore(best_score, float(np.mean(image)), float(np.mean(pixel)), per_group)
    good, synthetic_scores = np.split(scores.astype(np.float64), [judge.good_count])
    plain = synthetic_scores[synthetic.grade == GRADES.index("plain")]
    return Choice(fit_scorer(scoring, good_maps), validation, good, plain)


class _Judge:
    """Looks at maps part by part, good images first, and keeps of each candidate the scores and a sample of pixels."""

    def __init__(self, good_maps: Mapping[str, Tensor], synthetic: SyntheticSet, candidates: Sequence[Scoring]) -> None:
        first, self._candidates = next(iter(good_maps.values())), candidates
        self.good_count, self._device = len(first), first.device
        groups = sorted(set(zip(synthetic.family.tolist(), synthetic.grade.tolist(), strict=True)))
        self.group_names = [f"{FAMILIES[family]}/{GRADES[grade]}" for family, grade in groups]
        self.members = [np.flatnonzero((synthetic.family == f) & (synthetic.grade == g)) for f, g in groups]
        self._choose_pixels(synthetic)
        # All blends and reductions share the smoothed, standardised maps of a sigma.
        self._keys = {_map_key(scoring): scoring for scoring in candidates}
        self._reductions = {scoring.reduction for scoring in candidates}
        self._statistics = {
            sigma: self._fit(good_maps, [key for key in self._keys if key[0] == sigma])
            for sigma in dict.fromkeys(scoring.smoothing for scoring in candidates)
        }
        # Made at once: small results that are kept between large maps that are not would leave the memory in pieces.
        images, pixels = self.good_count + len(synthetic.images), self._pixel_count
        self._scores = {
            (key, reduction): torch.empty(images, device=self._device)
            for key in self._keys
            for reduction in self._reductions
        }
        self._samples = {key: torch.empty(pixels, device=self._device) for key in self._keys}
        self._images_done = self._pixels_done = 0

    def look(self, maps: Mapping[str, Tensor], source: np.ndarray, first_defect: int | None = None) -> None:
        """Take the maps of the next images; `source` is each one's good image, `first_defect` its place in the set."""
        fold_B = torch.from_numpy(source % 2).to(self._device)
        pixels = None if first_defect is None else self._pixels_of(first_defect, len(source))
        images = slice(self._images_done, self._images_done + len(source))
        sampled = slice(self._pixels_done, self._pixels_done + (0 if pixels is None else len(pixels)))
        self._images_done, self._pixels_done = images.stop, sampled.stop
        for sigma, statistics in self._statistics.items():
            smoothed: dict[str, Tensor] = {}
            standardised: dict[tuple[str, str], Tensor] = {}
            for name, calibration in statistics:
                if name not in smoothed:
                    smoothed[name] = smooth(maps[name].float(), sigma)
                standardised[name, calibration] = self._standardise(
                    smoothed[name], statistics[name, calibration], fold_B
                )
            for key, scoring in self._keys.items():
                if key[0] != sigma:
                    continue
                used = {name: standardised[name, scoring.calibration] for name in scoring.blended}
                map_B1HW = weighted(used, scoring.weights)
                for reduction in self._reductions:
                    own = reduction == OWN
                    scored_B1HW = standardised[IMAGE_SCORE, scoring.calibration] if own else map_B1HW
                    self._scores[key, reduction][images] = reduce(scored_B1HW, "max" if own else reduction)
                if pixels is not None:
                    self._samples[key][sampled] = map_B1HW.flatten()[pixels]

    def scores(self, scoring: Scoring) -> np.ndarray:
        """Return the scores of all images: good ones, then synthetic ones."""
        return self._scores[_map_key(scoring), scoring.reduction].cpu().numpy()

    def image_aurocs(self) -> np.ndarray:
        """Compute the AUROC of all good images against each group, K candidates × R groups, where the scores are."""
        scores_KN = torch.stack([self._scores[_map_key(one), one.reduction] for one in self._candidates])
        good_KG, defects_KD = scores_KN[:, : self.good_count].sort(dim=1).values, scores_KN[:, self.good_count :]
        # How many good images are below each defect, and how many at most as high: their sum is twice the wins.
        twice_KD = sum(torch.searchsorted(good_KG, defects_KD.contiguous(), right=side) for side in (False, True))
        twice_KD = twice_KD.cpu().numpy()
        wins = [twice_KD[:, members].sum(axis=1) / (2 * self.good_count * len(members)) for members in self.members]
        return np.stack(wins, axis=1)

    def pixel_precisions(self, key: _Key) -> np.ndarray:
        """Compute the pixel average precision of a blended map on the images of each group, where the maps are."""
        padded_P = torch.cat([self._samples[key], self._samples[key].new_full((1,), -torch.inf)])
        return _average_precisions(padded_P[self._at_RL], *self._labels_and_counts_RL).cpu().numpy()

    def _choose_pixels(self, synthetic: SyntheticSet) -> None:
        """Choose where the average precision looks: all defect pixels, and a fixed random part of the normal ones."""
        rng, share = np.random.default_rng(0), min(1.0, _NORMAL_PIXELS / synthetic.masks[0].size)
        pixels, labels = [], []
        for mask in synthetic.masks:
            defect = np.asarray(mask, dtype=bool).ravel()
            pixels.append(np.flatnonzero(defect | (rng.random(defect.size) < share)))
            labels.append(defect[pixels[-1]])
        self._pixels, self._area = pixels, synthetic.masks[0].size
        label_P = np.concatenate(labels)
        count_P = np.where(label_P, 1.0, 1 / share)  # how many pixels each one stands for
        image_P = np.repeat(np.arange(len(pixels)), [len(part) for part in pixels])
        places = [np.flatnonzero(np.isin(image_P, members)) for members in self.members]
        # A row per group, the short ones filled up with a pixel that counts nothing.
        at_RL = np.full((len(places), max(map(len, places))), len(label_P))
        for row_L, group in zip(at_RL, places, strict=True):
            row_L[: len(group)] = group
        label_RL, count_RL = (np.append(values_P, 0)[at_RL] for values_P in (label_P, count_P))
        self._at_RL = torch.from_numpy(at_RL).to(self._device)
        self._labels_and_counts_RL = tuple(torch.from_numpy(v).double().to(self._device) for v in (label_RL, count_RL))
        self._pixel_count = len(label_P)

    def _pixels_of(self, first: int, count: int) -> Tensor:
        """Return the chosen pixels of some images of the set, as places in their flattened maps."""
        parts = [place * self._area + pixels for place, pixels in enumerate(self._pixels[first : first + count])]
        return torch.from_numpy(np.concatenate(parts)).to(self._device)

    def _fit(self, good_maps: Mapping[str, Tensor], keys: Sequence[_Key]) -> dict[tuple[str, str], list[Statistics]]:
        """Fit what images are standardised by, by map and calibration: those of even and those of odd images."""
        fitted: dict[tuple[str, str], list[Statistics]] = {}
        for name, maps in good_maps.items():
            always = name == IMAGE_SCORE and OWN in self._reductions
            wanted = {self._keys[key].calibration for key in keys if always or name in self._keys[key].blended}
            if not wanted:
                continue
            smoothed = smooth(maps.float(), keys[0][0])
            if "none" in wanted:
                fitted[name, "none"] = [fit_statistics(smoothed, "none")] * 2
            if "position" in wanted:
                fitted[name, "position"] = [fit_statistics(smoothed[other::2], "position") for other in (1, 0)]
        return fitted

    @staticmethod
    def _standardise(smoothed_B1HW: Tensor, fitted: Sequence[Statistics], fold_B: Tensor) -> Tensor:
        if fitted[0] is fitted[1]:
            return standardise(smoothed_B1HW, fitted[0])
        even, odd = (standardise(smoothed_B1HW, statistics) for statistics in fitted)
        return torch.where(fold_B.view(-1, 1, 1, 1) == 0, even, odd)


def _average_precisions(score_RL: Tensor, label_RL: Tensor, count_RL: Tensor) -> Tensor:
    """Return `average_precision` of `models.metrics` for each row: Σ (recall step × precision), shape R, float64.

    `label_RL` is 0 or 1; `count_RL` says how many items each one stands for.
    """
    score_RL, order_RL = score_RL.sort(dim=1, descending=True)
    label_RL, count_RL = label_RL.gather(1, order_RL), count_RL.gather(1, order_RL)
    flagged_RL = count_RL.cumsum(dim=1)
    found_RL = (label_RL * count_RL).cumsum(dim=1)
    last_of_equals_RL = F.pad(score_RL[:, 1:] != score_RL[:, :-1], (0, 1), value=True)
    steps_RL = (
        (found_RL * last_of_equals_RL).cummax(dim=1).values.diff(dim=1, prepend=torch.zeros_like(found_RL[:, :1]))
    )
    return (steps_RL * found_RL / flagged_RL).sum(dim=1) / found_RL[:, -1]


def _map_key(scoring: Scoring) -> _Key:
    """Name the blended map of a scoring: scorings that differ in reduction only share it."""
    return scoring.smoothing, scoring.calibration, tuple(sorted(scoring.weights.items()))


def _check_good(good: Mapping[str, Tensor], synthetic: SyntheticSet) -> None:
    if not good:
        raise ModelError("the model gives no anomaly map")
    check_maps(good, good)
    first, *others = good
    count, size = len(good[first]), good[first].shape
    if count < 2:
        raise ModelError(f"choosing a scoring needs at least 2 good validation images, got {count}")
    for name in others:
        if good[name].shape != size:
            raise ModelError(f"map '{name}' differs in size or number from map '{first}'")
    if synthetic.source.max() >= count:
        raise ModelError(f"the synthetic set was made of more than the {count} good images given")


def _check_defects(part: Mapping[str, Tensor], good: Mapping[str, Tensor], synthetic: SyntheticSet, done: int) -> None:
    check_maps(part, good)
    if done + len(next(iter(part.values()))) > len(synthetic.images):
        raise ModelError(f"maps of more than {len(synthetic.images)} synthetic images: compute the maps on this set")
    count, size = len(part[next(iter(good))]), next(iter(good.values())).shape[1:]
    for name in good:
        if part[name].shape != (count, *size) or synthetic.masks.shape[1:] != tuple(size[1:]):
            raise ModelError(
                f"map '{name}' of the synthetic images, {tuple(part[name].shape)}, differs in size from those of the "
                f"good images, {tuple(size)}, or the masks, {synthetic.masks.shape}: compute the maps on this set"
            )
