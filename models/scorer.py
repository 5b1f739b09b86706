"""From a model's anomaly maps to one map and one score per image.

A scoring says which maps to blend, how much to smooth, how to reduce a map to a number and whether to calibrate each
position by the good images' own error there. It is configuration; the statistics it needs are fitted on good images.

Shapes: B images of a batch, G good images, H×W pixels; a map is float32 B×1×H×W, higher = more anomalous.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from msad.models.errors import ModelError
from msad.models.precision import full_float32
from msad.models.roi import Roi
from msad.models.smoothing import smooth

REDUCTIONS = ("max", "mean", "top1")
OWN = "own"
IMAGE_SCORE = "image_score"
"""The map of a model that scores an image as a whole: that score at every pixel. The reduction `own` takes it."""

CALIBRATIONS = ("none", "position")

FUSIONS = ("maps", "scores", "excesses")

BLENDS = ("deviations", "excesses")

_TINY = 1e-6
_LARGE_EXCESS = 2.0  # deviations from which on an excess is compressed


@dataclass(frozen=True)
class Scoring:
    """How maps become scores.

    Parameters
    ----------
    weights
        Share of each map in the image's score, and in the anomaly map, by the map's name; zero leaves it out.
    smoothing
        Sigma of a Gaussian, in pixels at the model's image size; 0 for none.
    reduction
        `max`, `mean`, or `top1`: the mean of the highest 1 % of the pixels; or `own`: not from the blend but from the
        model's own `IMAGE_SCORE`.
    calibration
        `none`: a map is standardised by one mean and one deviation; `position`: by those of its position. One for all
        maps, or each one's own by its name.
    fusion
        What is blended to an image's score: `maps`, and the blend is reduced; or `scores`: each map is reduced by
        itself, and its score expressed in deviations from those of good images. Of maps that see different things
        one's noise then does not hide what another one sees. `excesses`: as `scores`, but a score below the good
        images' mean counts as that mean: that one map sees less than usual does not excuse what another one sees.
    blend
        What the anomaly map is the weighted mean of: the `deviations` of each map, as they are; or their `excesses`:
        what a map sees less of than usual counts nothing, and of what it sees more of the logarithm, so that the map
        whose deviations are the largest does not decide alone where a defect is.
    map_weights
        Share of each of these maps in the anomaly map where that differs from `weights`, which are the score's alone
        then: what tells best that there is a defect need not tell best where. Only of fused scores.

    Raises
    ------
    ModelError
        A value is out of range or unknown.
    """

    weights: Mapping[str, float]
    smoothing: float = 0.0
    reduction: str = "max"
    calibration: str | Mapping[str, str] = "none"
    fusion: str = "maps"
    blend: str = "deviations"
    map_weights: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", _checked_shares("weights", self.weights))
        if self.map_weights is not None:
            object.__setattr__(self, "map_weights", _checked_shares("map_weights", self.map_weights))
            if not self.fuses_scores or sorted(self.map_weights) != sorted(self.blended):
                raise ModelError(
                    f"map_weights {self.map_weights} must name the maps of weights, {list(self.blended)}, and "
                    f"fusion be one of {', '.join(FUSIONS[1:])}: else the score is made of the anomaly map"
                )
        if not 0 <= self.smoothing < math.inf:
            raise ModelError(f"smoothing is a sigma in pixels, 0 or more, got {self.smoothing}")
        if self.reduction not in (*REDUCTIONS, OWN):
            raise ModelError(f"reduction must be one of {', '.join((*REDUCTIONS, OWN))}, got '{self.reduction}'")
        for name in self.map_names:
            if self.calibration_of(name) not in CALIBRATIONS:
                raise ModelError(f"calibration must be one of {', '.join(CALIBRATIONS)}, got '{self.calibration}'")
        if self.fusion not in FUSIONS:
            raise ModelError(f"fusion must be one of {', '.join(FUSIONS)}, got '{self.fusion}'")
        if self.blend not in BLENDS:
            raise ModelError(f"blend must be one of {', '.join(BLENDS)}, got '{self.blend}'")
        if self.fuses_scores and self.reduction == OWN:
            raise ModelError("a model's own score is not reduced from maps: fuse maps, or take another reduction")

    @property
    def fuses_scores(self) -> bool:
        """Whether an image's score is made of each map's own."""
        return self.fusion != "maps"

    @property
    def map_names(self) -> tuple[str, ...]:
        """The maps that count, in order; last the model's own score where that is the image's."""
        return tuple(dict.fromkeys((*self.blended, IMAGE_SCORE) if self.reduction == OWN else self.blended))

    @property
    def blended(self) -> tuple[str, ...]:
        """The maps that make the anomaly map."""
        return tuple(name for name, share in self.weights.items() if share > 0)

    def restricted(self, names: Iterable[str]) -> Scoring:
        """Return the same scoring of some of its maps, or of others, which count 1 each then."""
        kept = list(names)
        weights = {name: self.weights.get(name) or 1.0 for name in kept}
        calibration = {name: self.calibration_of(name) or "none" for name in kept}
        of_map = None if self.map_weights is None else {name: self.map_weights.get(name) or 1.0 for name in kept}
        return dataclasses.replace(self, weights=weights, calibration=calibration, map_weights=of_map)

    def calibration_of(self, name: str) -> str:
        """Return how a map is calibrated."""
        return self.calibration if isinstance(self.calibration, str) else self.calibration.get(name, "")

    def to_dict(self) -> dict[str, Any]:
        """Give plain values that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Scoring:
        """Build a scoring from what `to_dict` gave."""
        try:
            return cls(**values)
        except TypeError as error:
            raise ModelError(f"not a scoring: {dict(values)} ({error})") from error


def _checked_shares(what: str, given: Mapping[str, float]) -> dict[str, float]:
    shares = {str(name): float(share) for name, share in given.items()}
    if not any(shares.values()) or any(not math.isfinite(share) or share < 0 for share in shares.values()):
        raise ModelError(f"scoring {what} must be >= 0 and not all zero, got {shares}")
    return shares


@dataclass(frozen=True)
class Statistics:
    """Of one smoothed map on good images: mean and deviation, 1×H×W each, or 1×1×1 without calibration.

    Where scores are fused: `score_2` is the mean and the deviation of the scores that it is reduced to.
    """

    mean: Tensor
    std: Tensor
    score_2: Tensor | None = None


@dataclass(frozen=True)
class Scorer:
    """A scoring with the good images' statistics: turns a batch's maps into one map and scores, on any device.

    Where there is a region of interest, scores are of the pixels inside alone, and the map is outside as low as it is
    anywhere inside.
    """

    scoring: Scoring
    statistics: Mapping[str, Statistics] = field(repr=False)
    roi: Roi | None = field(default=None, repr=False)

    @full_float32()
    def __call__(self, maps: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Blend, smooth and reduce.

        Parameters
        ----------
        maps
            B×1×H×W each, by name; names that the scoring does not use are ignored.

        Returns
        -------
        tuple[Tensor, Tensor]
            The anomaly map B×1×H×W, in deviations from the good images, and the image scores B; float32.

        Raises
        ------
        ModelError
            A map is missing, or its size is not the one the statistics were fitted on.
        """
        missing = [name for name in self.scoring.map_names if name not in maps]
        if missing:
            raise ModelError(f"the scoring needs the maps {missing}, the model gives {sorted(maps)}")
        return self.of_smoothed(smooth_maps(self.scoring, maps, self.roi))

    def of_smoothed(self, smoothed: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Blend and reduce maps that are smoothed already, see `smooth_maps`."""
        scoring, standardised = self.scoring, standardised_maps(smoothed, self.statistics)
        if scoring.fuses_scores:  # before the blend, which may be made where a map lies
            reduced = {name: reduce(standardised[name], scoring.reduction, self.roi) for name in scoring.blended}
            score_B = fuse(scoring, reduced, {name: self.statistics[name].score_2 for name in reduced})
        map_B1HW = blend(scoring, standardised)
        if self.roi is not None:
            map_B1HW = self.roi.lowered(map_B1HW)
        if scoring.reduction == OWN:
            return map_B1HW, reduce(standardised[IMAGE_SCORE], "max")
        return map_B1HW, score_B if scoring.fuses_scores else reduce(map_B1HW, scoring.reduction, self.roi)

    def state(self) -> dict[str, Tensor]:
        """Give the statistics, and the region of interest, as named tensors on the CPU, for a file."""
        region = {} if self.roi is None else {"roi": self.roi.inside_1HW.cpu().contiguous()}
        return region | {
            f"{name}/{part}": getattr(statistics, part).detach().cpu().contiguous()
            for name, statistics in self.statistics.items()
            for part in ("mean", "std", "score_2")
            if getattr(statistics, part) is not None
        }

    @classmethod
    def from_state(cls, scoring: Scoring, tensors: Mapping[str, Tensor]) -> Scorer:
        """Build a scorer from what `state` gave.

        Raises
        ------
        ModelError
            The statistics of a map are missing, or the region of interest is none.
        """
        try:
            parts = ("mean", "std", "score_2") if scoring.fuses_scores else ("mean", "std")
            statistics = {n: Statistics(*(tensors[f"{n}/{part}"] for part in parts)) for n in scoring.map_names}
        except KeyError as error:
            raise ModelError(f"the scorer's file has no statistics {error}, only {sorted(tensors)}") from error
        return cls(scoring, statistics, Roi(tensors["roi"]) if "roi" in tensors else None)


@full_float32()
def fit_scorer(scoring: Scoring, good_maps: Mapping[str, Tensor], roi: Roi | None = None) -> Scorer:
    """Fit a scoring's statistics on the maps of good images.

    Parameters
    ----------
    scoring
        What to fit.
    good_maps
        G×1×H×W each, by name, all finite.
    roi
        Outside of which nothing counts.

    Raises
    ------
    ModelError
        A map is missing, empty or not finite.
    """
    check_maps(good_maps, scoring.map_names)
    smoothed = smooth_maps(scoring, good_maps, roi)
    fitted = {
        name: dataclasses.replace(
            fit_statistics(maps, scoring.calibration_of(name), roi), score_2=fit_score(scoring, name, maps, roi)
        )
        for name, maps in smoothed.items()
    }
    return Scorer(scoring, fitted, roi)


def fit_score(scoring: Scoring, name: str, smoothed_G1HW: Tensor, roi: Roi | None = None) -> Tensor | None:
    """Measure mean and deviation of the scores of good images by one map, 2; None where scores are not fused.

    Each half of the images is standardised by the other, as images to come will be: by what had not seen them.
    """
    if not scoring.fuses_scores:
        return None
    parts = (smoothed_G1HW[::2], smoothed_G1HW[1::2]) if len(smoothed_G1HW) > 1 else (smoothed_G1HW, smoothed_G1HW)
    score_G = torch.cat(
        [
            reduce(standardise(one, fit_statistics(other, scoring.calibration_of(name), roi)), scoring.reduction, roi)
            for one, other in (parts, parts[::-1])
        ]
    )
    return torch.stack([score_G.mean(), score_G.std(correction=0).clamp_min(_TINY)])


def fuse(scoring: Scoring, reduced: Mapping[str, Tensor], score_2: Mapping[str, Tensor]) -> Tensor:
    """Average the scores of each map, B, in deviations from those of good images, whose moments `score_2` are."""
    at = {name: score_2[name].to(score_B.device) for name, score_B in reduced.items()}
    deviations = {name: (score_B - at[name][0]) / at[name][1] for name, score_B in reduced.items()}
    if scoring.fusion == "excesses":
        deviations = {name: deviation_B.clamp_min(0) for name, deviation_B in deviations.items()}
    return weighted(deviations, scoring.weights)


def blend(scoring: Scoring, standardised: Mapping[str, Tensor]) -> Tensor:
    """Make one map, B×1×H×W, of maps in deviations from the good images; an excess that is small stays as it is."""
    if scoring.blend == "excesses":
        standardised = {
            name: (standardised[name].clamp_min(0) / _LARGE_EXCESS).log1p() * _LARGE_EXCESS for name in scoring.blended
        }
    return weighted(standardised, scoring.map_weights or scoring.weights)


def smooth_maps(scoring: Scoring, maps: Mapping[str, Tensor], roi: Roi | None = None) -> dict[str, Tensor]:
    """Return the maps that a scoring uses, smoothed as it says."""
    return {name: smooth(maps[name].float(), scoring.smoothing, roi) for name in scoring.map_names}


def fit_statistics(smoothed_G1HW: Tensor, calibration: str, roi: Roi | None = None) -> Statistics:
    """Measure mean and deviation of a smoothed map: over everything, or per position."""
    mean_1HW = smoothed_G1HW.mean(dim=0)  # six times as fast as torch.var_mean, which goes along images
    return statistics_of_moments(mean_1HW, (smoothed_G1HW - mean_1HW).square_().mean(dim=0), calibration, roi)


def statistics_of_moments(
    mean_1HW: Tensor, variance_1HW: Tensor, calibration: str, roi: Roi | None = None
) -> Statistics:
    """Return the statistics of a smoothed map from its mean and variance at each position over good images.

    A few good images give a noisy deviation per position, so variance is averaged over the neighbourhood and never
    taken below a tenth of the average variance: a spot that happened to agree must not raise every later difference.
    """

    def average(values_1HW: Tensor) -> Tensor:
        return values_1HW.mean() if roi is None else roi.pixels(values_1HW[None]).mean()

    if calibration == "none":
        mean = average(mean_1HW)
        std = (average(variance_1HW) + average((mean_1HW - mean).square())).sqrt().clamp_min(_TINY)
        return Statistics(mean.reshape(1, 1, 1), std.reshape(1, 1, 1))
    neighbourhood = max(1.0, math.sqrt(mean_1HW.numel()) / 64)
    smooth_1HW = smooth(mean_1HW[None], neighbourhood / 2, roi)[0]
    variance_1HW = smooth((variance_1HW + (mean_1HW - smooth_1HW).square())[None], neighbourhood, roi)[0]
    std_1HW = (variance_1HW + 0.1 * average(variance_1HW)).sqrt().clamp_min(_TINY)
    return Statistics(smooth_1HW, std_1HW)


def standardised_maps(smoothed: Mapping[str, Tensor], statistics: Mapping[str, Statistics]) -> dict[str, Tensor]:
    """Express smoothed maps in deviations from the good images: B×1×H×W each, by name."""
    for name in statistics:
        size, fitted = (tuple(part.shape[-2:]) for part in (smoothed[name], statistics[name].mean))
        if fitted not in ((1, 1), size):
            raise ModelError(
                f"map '{name}' is {size}, its statistics {fitted}: resize the images to the size the model was made for"
            )
    return {name: standardise(smoothed[name], fitted) for name, fitted in statistics.items()}


def standardise(smoothed_B1HW: Tensor, statistics: Statistics) -> Tensor:
    """Express a smoothed map in deviations from the good images."""
    device = smoothed_B1HW.device
    return (smoothed_B1HW - statistics.mean.to(device)) / statistics.std.to(device)


def weighted(standardised: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Average maps, or scores, by their weights; a weight of zero leaves one out."""
    used = {name: share for name, share in weights.items() if share > 0}
    first, *others = used
    if not others:
        return standardised[first]
    total = sum(used.values())
    result_B1HW = standardised[first] * (used[first] / total)
    for name in others:
        result_B1HW.add_(standardised[name], alpha=used[name] / total)
    return result_B1HW


def reduce(map_B1HW: Tensor, reduction: str, roi: Roi | None = None) -> Tensor:
    """Reduce each map to a number: `max`, `mean`, or `top1` (mean of the highest 1 % of the pixels, at least one)."""
    flat = map_B1HW.flatten(1) if roi is None else roi.pixels(map_B1HW)
    if reduction == "max":
        return flat.amax(dim=1)
    if reduction == "mean":
        return flat.mean(dim=1)
    return flat.topk(max(1, flat.shape[1] // 100), dim=1, sorted=False).values.mean(dim=1)


def check_maps(maps: Mapping[str, Tensor], names: Iterable[str]) -> None:
    """Refuse maps that are missing, empty or not finite."""
    for name in names:
        if name not in maps:
            raise ModelError(f"there is no map '{name}', only {sorted(maps)}")
        if maps[name].ndim != 4 or maps[name].shape[1] != 1 or not maps[name].numel():
            raise ModelError(f"map '{name}' must be B×1×H×W with at least one image, got {tuple(maps[name].shape)}")
        if not bool(torch.isfinite(maps[name]).all()):
            raise ModelError(f"map '{name}' has values that are not finite: the training diverged")
