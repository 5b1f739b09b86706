"""Choose the scoring of a trained model: good images against synthetic and known defects, at no training cost.

No figure is read from the images that it was chosen on (Stone, "Cross-validatory choice and assessment of statistical
predictions", 1974): the best of a hundred scorings of pure noise has an image AUROC of 0.6 on the ten images that it is
the best on. So each half of the good images, with the defective ones of that half, chooses a scoring, and the figure is
read on the other half; of both figures the mean is the validation score. Noise then gets the score of guessing, however
many scorings and maps there are. What is delivered is the scoring chosen on all images.

Shapes: G good images, D defective ones, H×W pixels; K candidates, R groups, two halves; maps are float32 G×1×H×W and
D×1×H×W.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import special
from torch import Tensor

from msad.models.defects import HALVES, DefectGroups, KnownDefects
from msad.models.errors import ModelError
from msad.models.judge import Judge
from msad.models.precision import full_float32
from msad.models.roi import Roi
from msad.models.scorer import CALIBRATIONS, IMAGE_SCORE, OWN, REDUCTIONS, Scorer, Scoring, check_maps, fit_scorer
from msad.models.synthesis.synthetic_defects import SyntheticSet

__all__ = ["Choice", "Scorer", "Scoring", "ValidationScore", "choose_scoring", "default_candidates", "fit_scorer"]

VERSION = 3
"""Part of every identity: raise it when the same maps get another validation score."""

IMAGE_SHARE = 0.8
"""How much image AUROC counts in the validation score; the rest is pixel average precision."""

IMAGE_SHARES = {"validation_score": IMAGE_SHARE, "validation_image_auroc": 1.0, "validation_pixel_ap": 0.0}
"""The same by the name of what is maximised."""

FEWEST_TO_DEPART, SIGNIFICANCE = 5, 0.1
"""Known defects that can take another scoring than the synthetic ones chose, and how sure they must be of it."""

_GOOD_AT_ONCE = 8


@dataclass(frozen=True)
class Reading:
    """What one half of the images thought best, and what that is worth on the other half.

    Parameters
    ----------
    value
        What is maximised, on the half that chose: too good to be true, and for choosing only.
    per_group
        On the other half, by the group's name (`msad.models.defects.DefectGroups`): `image_auroc`, `pixel_ap`, the
        share of defective pixels `prevalence`, the number of `images`, and the group's `weight`; the weights sum to 1.
        A group without a mask has no figure of pixels.
    """

    value: float
    per_group: Mapping[str, Mapping[str, float]]

    def mean(self, figure: str) -> float:
        """Average a figure over the groups that have it, by their weights."""
        pairs = [(group["weight"], group[figure]) for group in self.per_group.values() if figure in group]
        return sum(weight * value for weight, value in pairs) / sum(weight for weight, _ in pairs)


@dataclass(frozen=True)
class ValidationScore:
    """What a search maximises: `score` = 0.8 × `image_auroc` + 0.2 × `pixel_ap`, each read where it was not chosen.

    Each is the mean of both halves' readings. `pixel_chance` is what a map that knows nothing gets for `pixel_ap`, the
    share of defective pixels, and `chance` what it gets for `score`. `per_group` holds `image_auroc`, `pixel_ap` and
    the number of `images` by the group's name.
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
            per_group[name] = {
                figure: sum(part["images"] * part[figure] for part in of_it) / sum(part["images"] for part in of_it)
                for figure in ("image_auroc", "pixel_ap")
                if (of_it := [part for part in parts if figure in part])
            } | {"images": sum(part["images"] for part in parts)}
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
    known: KnownDefects | None = None,
    fixed: Scoring | None = None,
    changed_maps: Mapping[str, Tensor] | None = None,
) -> Choice:
    """Find the scoring that best tells good images from defective ones.

    Parameters
    ----------
    good_maps
        By name, G×1×H×W, float32.
    defect_maps
        Of the synthetic defects and then of the known ones, by name, D×1×H×W, float32, on the same device; or the same
        in parts, one after the other: only one of them is in memory at once.
    synthetic
        Synthetic defects; `source` points into the good images.
    candidates
        What to try; `default_candidates` if None.
    objective
        What the choice maximises, one of `IMAGE_SHARES`.
    roi
        The region of interest, which the synthetic defects lie in, if there is one: nothing else is judged.
    known
        Real defects that have a say too: in the readings as `msad.models.defects.known_share` has it, and in the choice
        where they clearly prefer another candidate, see `_departed`.
    fixed
        The candidate that an architecture is read by, whatever synthetic defects say.
    changed_maps
        As `good_maps`, of the first of these images after a change that leaves them good
        (`msad.models.synthesis.nuisances`): they count as the others.

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
    defects = DefectGroups.of(synthetic, known)
    changed = 0
    if changed_maps is not None:
        changed = len(changed_maps[names[0]])
        good_maps = {name: torch.cat([maps, changed_maps[name]]) for name, maps in good_maps.items()}
    judge = Judge(good_maps, defects, candidates, roi, changed)
    for first in range(0, judge.good_count, _GOOD_AT_ONCE):
        judge.update({name: maps[first : first + _GOOD_AT_ONCE] for name, maps in good_maps.items()})
    done = 0
    for part in [defect_maps] if isinstance(defect_maps, Mapping) else defect_maps:
        _check_defects(part, good_maps, defects, done)
        judge.update(part)
        done += len(part[names[0]])
    if done != len(defects):
        raise ModelError(f"maps of {done} defective images, not {len(defects)}: compute the maps on this set")

    wins_KD, share = judge.image_wins(), IMAGE_SHARES[objective]
    aurocs_K2R, of_drawn_2R = judge.image_aurocs(wins_KD), defects.weights_2R * ~defects.known_groups
    auroc_K2 = _weighted(aurocs_K2R, of_drawn_2R)

    def precisions_2(position: int, weights_2R: np.ndarray) -> np.ndarray:
        return _weighted(judge.pixel_precisions(candidates[position]), weights_2R)

    def chosen_by(halves: slice) -> int:
        """Return what synthetic defects of some halves choose, or the fixed one, unless known ones are against it."""
        if fixed is None:
            auroc_K = auroc_K2[:, halves].mean(axis=1)
            position = _best(auroc_K, lambda position: float(precisions_2(position, of_drawn_2R)[halves].mean()), share)
        else:
            position = candidates.index(fixed)
        heard = defects.known & np.isin(defects.half, np.arange(HALVES)[halves])
        return _departed(wins_KD[:, heard], position) if share else position

    readings = []
    for half in range(HALVES):
        chosen = chosen_by(slice(half, half + 1))
        aurocs_2R, precisions_2R = aurocs_K2R[chosen], judge.pixel_precisions(candidates[chosen])
        auroc, precision = (
            float(_weighted(figures, defects.weights_2R)[half]) for figures in (aurocs_2R, precisions_2R)
        )
        readings.append(
            _reading(judge, defects, 1 - half, aurocs_2R, precisions_2R, share * auroc + (1 - share) * precision)
        )
    return Choice(fit_scorer(candidates[chosen_by(slice(None))], good_maps, roi), tuple(readings))


def _best(auroc_K: np.ndarray, precision: Callable[[int], float], share: float) -> int:
    """Return the candidate of the highest `share` × AUROC + (1 - `share`) × precision, of equals the first."""
    best_score, best = -1.0, 0
    # A candidate whose image AUROC could not win even with a perfect pixel figure needs none.
    for position, auroc in sorted(enumerate(auroc_K.tolist()), key=lambda item: (-item[1], item[0])):
        if share * auroc + (1 - share) < best_score:
            break
        score = share * auroc + ((1 - share) * precision(position) if share < 1 else 0.0)
        if (score, -position) > (best_score, -best):
            best_score, best = score, position
    return best


def _departed(wins_KD: np.ndarray, before: int) -> int:
    """Return the candidate that known defects speak for by their wins, else the one chosen before.

    It must be the best of all for them, and better than the one before by a paired t-test at `SIGNIFICANCE`: what few
    real defects prefer is mostly noise, and many synthetic ones, or an architecture's own rule, are no bad advice.
    """
    count = wins_KD.shape[1]
    if count < FEWEST_TO_DEPART:
        return before
    best = int(wins_KD.mean(axis=1).argmax())
    gain_D = wins_KD[best] - wins_KD[before]
    least = special.stdtrit(count - 1, 1 - SIGNIFICANCE) * gain_D.std(ddof=1) / math.sqrt(count)
    return best if gain_D.mean() > least else before


def _weighted(figures: np.ndarray, weights_2R: np.ndarray) -> np.ndarray:
    """Average figures ...×2×R over the groups that have one; nan where a group has none."""
    weights = np.where(np.isnan(figures), 0.0, weights_2R)
    return np.nansum(figures * weights, axis=-1) / weights.sum(axis=-1)


def _reading(
    judge: Judge, defects: DefectGroups, half: int, auroc_2R: np.ndarray, precision_2R: np.ndarray, value: float
) -> Reading:
    columns = {
        "image_auroc": auroc_2R[half],
        "pixel_ap": precision_2R[half],
        "prevalence": judge.prevalence_2R[half],
        "weight": defects.weights_2R[half],
    }
    per_group = {
        name: {figure: float(values_R[row]) for figure, values_R in columns.items() if not np.isnan(values_R[row])}
        | {"images": int(count)}
        for row, (name, count) in enumerate(zip(defects.names, judge.counts_2R[half], strict=True))
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


def _check_defects(part: Mapping[str, Tensor], good: Mapping[str, Tensor], defects: DefectGroups, done: int) -> None:
    check_maps(part, good)
    count, size, masks = len(part[next(iter(good))]), next(iter(good.values())).shape[1:], defects.masks[0].shape
    if done + count > len(defects):
        raise ModelError(f"maps of more than {len(defects)} defective images: compute the maps on this set")
    for name in good:
        if part[name].shape != (count, *size) or masks != tuple(size[1:]):
            raise ModelError(
                f"map '{name}' of the defective images, {tuple(part[name].shape)}, differs in size from those of the "
                f"good images, {tuple(size)}, or the masks, {masks}: compute the maps on this set"
            )
