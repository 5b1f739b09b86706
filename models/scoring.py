"""Choose the scoring of a trained model: good images against their synthetic defects, at no training cost.

No figure is read from the images that it was chosen on (Stone, "Cross-validatory choice and assessment of statistical
predictions", 1974): the best of a hundred scorings of pure noise has an image AUROC of 0.6 on the ten images that it is
the best on. So each half of the good images, with the synthetic images made of it, chooses a scoring, and the figure is
read on the other half; of both figures the mean is the validation score. Noise then gets the score of guessing, however
many scorings and maps there are. What is delivered is the scoring chosen on all images.

Shapes: G good images, D synthetic ones, H×W pixels; K candidates, R groups, two halves; maps are float32 G×1×H×W and
D×1×H×W.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msad.models.errors import ModelError
from msad.models.judge import HALVES, Judge
from msad.models.precision import full_float32
from msad.models.roi import Roi
from msad.models.scorer import CALIBRATIONS, IMAGE_SCORE, OWN, REDUCTIONS, Scorer, Scoring, check_maps, fit_scorer
from msad.models.synthesis.synthetic_defects import SyntheticSet

__all__ = ["Choice", "Scorer", "Scoring", "ValidationScore", "choose_scoring", "default_candidates", "fit_scorer"]

VERSION = 2
"""Part of every identity: raise it when the same maps get another validation score."""

IMAGE_SHARE = 0.8
"""How much image AUROC counts in the validation score; the rest is pixel average precision."""

IMAGE_SHARES = {"validation_score": IMAGE_SHARE, "validation_image_auroc": 1.0, "validation_pixel_ap": 0.0}
"""The same by the name of what is maximised."""

_GOOD_AT_ONCE = 8


@dataclass(frozen=True)
class Reading:
    """What one half of the images thought best, and what that is worth on the other half.

    Parameters
    ----------
    value
        What is maximised, on the half that chose: too good to be true, and for choosing only.
    per_group
        On the other half, by "family/grade": `image_auroc`, `pixel_ap`, the share of defective pixels `prevalence`, the
        number of `images`, and the group's `weight` (see `msad.models.judge`); the weights sum to 1.
    """

    value: float
    per_group: Mapping[str, Mapping[str, float]]

    def mean(self, figure: str) -> float:
        """Average a figure over the groups by their weights."""
        return sum(group["weight"] * group[figure] for group in self.per_group.values())


@dataclass(frozen=True)
class ValidationScore:
    """What a search maximises: `score` = 0.8 × `image_auroc` + 0.2 × `pixel_ap`, each read where it was not chosen.

    Each is the mean of both halves' readings. `pixel_chance` is what a map that knows nothing gets for `pixel_ap`, the
    share of defective pixels, and `chance` what it gets for `score`. `per_group` holds `image_auroc`, `pixel_ap` and
    the number of `images` by "family/grade".
    """

    score: float
    image_auroc: float
    pixel_ap: float
    chance: float
    pixel_chance: float
    per_group: dict[str, dict[str, float]]

    @classmethod
    def of(cls, readings: Sequence[Reading]) -> ValidationScore:
        """Average the readings of both halves."""
        auroc, precision, prevalence = (
            sum(reading.mean(figure) for reading in readings) / len(readings)
            for figure in ("image_auroc", "pixel_ap", "prevalence")
        )
        per_group = {}
        for name in dict.fromkeys(name for reading in readings for name in reading.per_group):
            parts = [reading.per_group[name] for reading in readings if name in reading.per_group]
            images = sum(part["images"] for part in parts)
            per_group[name] = {
                figure: sum(part["images"] * part[figure] for part in parts) / images
                for figure in ("image_auroc", "pixel_ap")
            } | {"images": images}
        return cls(
            score=IMAGE_SHARE * auroc + (1 - IMAGE_SHARE) * precision,
            image_auroc=auroc,
            pixel_ap=precision,
            chance=IMAGE_SHARE * 0.5 + (1 - IMAGE_SHARE) * prevalence,
            pixel_chance=prevalence,
            per_group=per_group,
        )

    def to_dict(self) -> dict[str, Any]:
        """Give plain values that JSON can hold."""
        return dict(vars(self))


@dataclass(frozen=True)
class Choice:
    """The scorer that all images chose, fitted on all good ones, and what each half's choice is worth on the other."""

    scorer: Scorer
    readings: tuple[Reading, Reading]

    @property
    def validation(self) -> ValidationScore:
        """What choosing like this is worth on images that it was not chosen on."""
        return ValidationScore.of(self.readings)


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
@full_float32()
def choose_scoring(
    good_maps: Mapping[str, Tensor],
    defect_maps: Mapping[str, Tensor] | Iterable[Mapping[str, Tensor]],
    synthetic: SyntheticSet,
    candidates: Sequence[Scoring] | None = None,
    objective: str = "validation_score",
    roi: Roi | None = None,
) -> Choice:
    """Find the scoring that best tells good images from synthetic defects.

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
    objective
        What the choice maximises, one of `IMAGE_SHARES`.
    roi
        The region of interest, which the defects lie in, if there is one: nothing else is judged.

    Returns
    -------
    Choice

    Raises
    ------
    ModelError
        Maps and sets do not fit together, a map is not finite, there are fewer than two good images, or none with a
        synthetic defect in one of the halves.
    """
    names = tuple(good_maps)
    _check_good(good_maps, synthetic)
    candidates = default_candidates(names, min(good_maps[names[0]].shape[-2:])) if candidates is None else candidates
    if not candidates:
        raise ModelError("there is no scoring to choose from")
    judge = Judge(good_maps, synthetic, candidates, roi)
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

    aurocs_K2R, share = judge.image_aurocs(), IMAGE_SHARES[objective]
    auroc_K2 = np.nansum(aurocs_K2R * judge.weights_2R, axis=2)

    def precision_2(position: int) -> np.ndarray:
        return np.nansum(judge.pixel_precisions(candidates[position]) * judge.weights_2R, axis=1)

    by_all, _ = _best(auroc_K2.mean(axis=1), lambda position: float(precision_2(position).mean()), share)
    readings = []
    for half in range(HALVES):
        chosen, value = _best(auroc_K2[:, half], lambda position, half=half: float(precision_2(position)[half]), share)
        readings.append(
            _reading(judge, 1 - half, aurocs_K2R[chosen], judge.pixel_precisions(candidates[chosen]), value)
        )
    return Choice(fit_scorer(candidates[by_all], good_maps, roi), tuple(readings))


def _best(auroc_K: np.ndarray, precision: Callable[[int], float], share: float) -> tuple[int, float]:
    """Return the candidate of the highest `share` × AUROC + (1 - `share`) × precision, of equals the first; and it."""
    best_score, best = -1.0, 0
    # A candidate whose image AUROC could not win even with a perfect pixel figure needs none.
    for position, auroc in sorted(enumerate(auroc_K.tolist()), key=lambda item: (-item[1], item[0])):
        if share * auroc + (1 - share) < best_score:
            break
        score = share * auroc + ((1 - share) * precision(position) if share < 1 else 0.0)
        if (score, -position) > (best_score, -best):
            best_score, best = score, position
    return best, best_score


def _reading(judge: Judge, half: int, auroc_2R: np.ndarray, precision_2R: np.ndarray, value: float) -> Reading:
    columns = {
        "image_auroc": auroc_2R[half],
        "pixel_ap": precision_2R[half],
        "prevalence": judge.prevalence_2R[half],
        "weight": judge.weights_2R[half],
    }
    per_group = {
        name: {figure: float(values_R[row]) for figure, values_R in columns.items()} | {"images": int(count)}
        for row, (name, count) in enumerate(zip(judge.group_names, judge.counts_2R[half], strict=True))
        if count
    }
    return Reading(value, per_group)


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
    for half, name in enumerate(("even", "odd")):
        if not (synthetic.source % HALVES == half).any():
            raise ModelError(f"no synthetic image was made of a good one at an {name} position: draw more of them")


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
