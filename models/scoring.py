"""Choose the scoring of a trained model: good images against their synthetic defects, at no training cost.

Shapes: G good images, D synthetic ones, H×W pixels; maps are float32 G×1×H×W and D×1×H×W.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from models.errors import ModelError
from models.metrics import average_precision, image_auroc
from models.scorer import (
    CALIBRATIONS,
    IMAGE_SCORE,
    OWN,
    REDUCTIONS,
    Scorer,
    Scoring,
    check_maps,
    fit_scorer,
    fit_statistics,
    reduce,
    smooth,
    standardise,
    threshold,
    weighted,
)
from models.synthetic_defects import FAMILIES, GRADES, SyntheticSet

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


def default_candidates(map_names: Sequence[str], image_size: int) -> list[Scoring]:
    """List every single map and their equal blend, with each smoothing (0, 2, 4 pixels at 256), reduction, calibration.

    A model that scores images itself (`IMAGE_SCORE`) may keep that score beside any blend of its maps. The simplest
    come first: of equals, the first is chosen.
    """
    shown = [name for name in map_names if name != IMAGE_SCORE] or list(map_names)
    blends = [{name: 1.0} for name in shown]
    if len(shown) > 1:
        blends.append(dict.fromkeys(shown, 1.0))
    reductions = (*REDUCTIONS, OWN) if IMAGE_SCORE in map_names else REDUCTIONS
    return [
        Scoring(weights, sigma * image_size / 256, reduction, calibration)
        for calibration in CALIBRATIONS
        for weights in blends
        for sigma in (0.0, 2.0, 4.0)
        for reduction in reductions
    ]


@torch.no_grad()
def choose_scoring(
    good_maps: Mapping[str, Tensor],
    defect_maps: Mapping[str, Tensor],
    synthetic: SyntheticSet,
    candidates: Sequence[Scoring] | None = None,
) -> Choice:
    """Find the scoring that best tells good images from synthetic defects.

    Calibration must not be judged on the images it was fitted on. So while choosing, the good images are halved by
    the parity of their position; each half, with the synthetic images made of it, is scored with the statistics of the
    other. The two numbers per map that "none" needs hide nothing and come from all good images.

    Parameters
    ----------
    good_maps, defect_maps
        By name, G×1×H×W and D×1×H×W, float32, on one device.
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
    _check(good_maps, defect_maps, synthetic, names)
    candidates = default_candidates(names, min(good_maps[names[0]].shape[-2:])) if candidates is None else candidates
    if not candidates:
        raise ModelError("there is no scoring to choose from")
    device = good_maps[names[0]].device
    judge = _Judge(synthetic, len(good_maps[names[0]]), device)

    tried: list[tuple[float, int, Scoring, np.ndarray, np.ndarray]] = []
    for smoothing in dict.fromkeys(scoring.smoothing for scoring in candidates):
        # One sigma at a time bounds the memory; all blends and reductions share its smoothed, standardised maps.
        maps = judge.standardised(good_maps, defect_maps, smoothing)
        for _, group in groupby(
            sorted((_map_key(c), i) for i, c in enumerate(candidates) if c.smoothing == smoothing), lambda item: item[0]
        ):
            positions = [position for _, position in group]
            scoring = candidates[positions[0]]
            map_B1HW = weighted({name: maps(name, scoring.calibration) for name in scoring.blended}, scoring.weights)
            sampled = judge.sample(map_B1HW)
            for position in positions:
                own = candidates[position].reduction == OWN
                scored_B1HW = maps(IMAGE_SCORE, scoring.calibration) if own else map_B1HW
                scores = judge.in_order(reduce(scored_B1HW, "max" if own else candidates[position].reduction))
                tried.append((judge.image_aurocs(scores).mean(), position, candidates[position], scores, sampled))

    # A candidate whose image AUROC could not win even with a perfect pixel figure needs none.
    tried.sort(key=lambda item: (-item[0], item[1]))
    best_score, best, precisions = -1.0, None, {}
    for auroc, position, scoring, scores, sampled in tried:
        if IMAGE_SHARE * auroc + (1 - IMAGE_SHARE) < best_score:
            break
        key = _map_key(scoring)
        if key not in precisions:
            precisions[key] = judge.pixel_precisions(sampled)
        score = float(IMAGE_SHARE * auroc + (1 - IMAGE_SHARE) * precisions[key].mean())
        if best is None or (score, -position) > (best_score, -best[0]):
            best_score, best = score, (position, scoring, scores, precisions[key])
    _, scoring, scores, pixel = best
    image = judge.image_aurocs(scores)
    per_group = {
        name: {"image_auroc": float(a), "pixel_ap": float(p)}
        for name, a, p in zip(judge.group_names, image, pixel, strict=True)
    }
    validation = ValidationScore(best_score, float(np.mean(image)), float(np.mean(pixel)), per_group)
    good, synthetic_scores = np.split(scores.astype(np.float64), [judge.good_count])
    plain = synthetic_scores[synthetic.grade == GRADES.index("plain")]
    return Choice(fit_scorer(scoring, good_maps), validation, good, plain)


class _Judge:
    """Holds what every candidate shares: folds, groups, and the pixels that the average precision looks at.

    Inside, images lie in the order of their folds, so that a fold is a slice and nothing is copied.
    """

    def __init__(self, synthetic: SyntheticSet, good_count: int, device: torch.device) -> None:
        self.good_count = good_count
        source = np.concatenate([np.arange(good_count), synthetic.source])
        order = np.argsort(source % 2, kind="stable")
        self.place = np.argsort(order)
        self.order = torch.from_numpy(order).to(device)
        even, even_good = int(np.sum(source % 2 == 0)), (good_count + 1) // 2
        odd_good = good_count - even_good
        self.folds = (slice(0, even), slice(even, None))
        self.fold_goods = (slice(0, even_good), slice(even, even + odd_good))
        groups = sorted(set(zip(synthetic.family.tolist(), synthetic.grade.tolist(), strict=True)))
        self.group_names = [f"{FAMILIES[family]}/{GRADES[grade]}" for family, grade in groups]
        self.members = [np.flatnonzero((synthetic.family == f) & (synthetic.grade == g)) for f, g in groups]

        # All defect pixels, and a fixed random part of the normal ones that stand for the rest.
        masks = np.asarray(synthetic.masks, dtype=bool).reshape(len(synthetic.masks), -1)
        share = min(1.0, _NORMAL_PIXELS / masks.shape[1])
        image, pixel = np.nonzero(masks | (np.random.default_rng(0).random(masks.shape) < share))
        self.pixels = torch.from_numpy(self.place[image + good_count] * masks.shape[1] + pixel).to(device)
        self.labels = masks[image, pixel]
        self.stands_for = np.where(self.labels, 1.0, 1 / share)
        self.pixel_members = [np.flatnonzero(np.isin(image, members)) for members in self.members]

    def standardised(
        self, good: Mapping[str, Tensor], defect: Mapping[str, Tensor], sigma: float
    ) -> Callable[[str, str], Tensor]:
        """Give a function of map name and calibration: the standardised map of all images, each made once."""

        @cache
        def smoothed(name: str) -> Tensor:
            return smooth(torch.cat([good[name], defect[name]]).float()[self.order], sigma)

        @cache
        def standardised(name: str, calibration: str) -> Tensor:
            map_B1HW, goods = smoothed(name), [smoothed(name)[fold] for fold in self.fold_goods]
            if calibration == "none":
                return standardise(map_B1HW, fit_statistics(torch.cat(goods), calibration))
            others = (fit_statistics(goods[1], calibration), fit_statistics(goods[0], calibration))
            return torch.cat([standardise(map_B1HW[f], other) for f, other in zip(self.folds, others, strict=True)])

        return standardised

    def sample(self, map_B1HW: Tensor) -> np.ndarray:
        """Take the values that the pixel average precision is computed from."""
        return map_B1HW.flatten()[self.pixels].cpu().numpy()

    def in_order(self, score_B: Tensor) -> np.ndarray:
        """Bring scores back into the callers' order: good images, then synthetic ones."""
        return score_B.cpu().numpy()[self.place]

    def image_aurocs(self, scores: np.ndarray) -> np.ndarray:
        """Compute the AUROC of all good images against each group."""
        good, synthetic = scores[: self.good_count], scores[self.good_count :]
        return np.array(
            [
                image_auroc(np.repeat([0, 1], [len(good), len(members)]), np.concatenate([good, synthetic[members]]))
                for members in self.members
            ]
        )

    def pixel_precisions(self, sampled: np.ndarray) -> np.ndarray:
        """Compute the pixel average precision on the images of each group."""
        return np.array([average_precision(self.labels[m], sampled[m], self.stands_for[m]) for m in self.pixel_members])


def _map_key(scoring: Scoring) -> tuple[float, str, tuple[tuple[str, float], ...]]:
    """Name the blended map of a scoring: scorings that differ in reduction only share it."""
    return scoring.smoothing, scoring.calibration, tuple(sorted(scoring.weights.items()))


def _check(good: Mapping[str, Tensor], defect: Mapping[str, Tensor], synthetic: SyntheticSet, names: tuple) -> None:
    if not names:
        raise ModelError("the model gives no anomaly map")
    check_maps(good, names)
    check_maps(defect, names)
    count, size = len(good[names[0]]), good[names[0]].shape[1:]
    if count < 2:
        raise ModelError(f"choosing a scoring needs at least 2 good validation images, got {count}")
    for name in names:
        if good[name].shape[1:] != size or defect[name].shape[1:] != size or len(good[name]) != count:
            raise ModelError(f"map '{name}' differs in size or number from map '{names[0]}'")
        if len(defect[name]) != len(synthetic.images) or synthetic.masks.shape[1:] != tuple(size[1:]):
            raise ModelError(
                f"map '{name}' of the synthetic images is {tuple(defect[name].shape)}, their masks "
                f"{synthetic.masks.shape}: compute the maps on this set, at its own size"
            )
    if synthetic.source.max() >= count:
        raise ModelError(f"the synthetic set was made of more than the {count} good images given")
