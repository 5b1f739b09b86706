"""A model on the validation images: its maps, the scoring that suits them, and the best weights so far.

Tensors are named by shape: B images of a batch, C channels, H×W pixels, N images of a set.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msad.models.base import AnomalyModel, Encoded
from msad.models.errors import ModelError
from msad.models.false_regions import FalseRegions, pixel_threshold
from msad.models.scorer import IMAGE_SCORE
from msad.models.scoring import Choice, Reading, Scorer, Scoring, ValidationScore, choose_scoring, default_candidates
from msad.models.synthesis.synthetic_defects import GRADES
from msad.models.thresholds import FalseAlarms, LeaveOneOut, threshold
from msad.training.batches import FeatureBatches, PlainBatches
from msad.training.job_config import JobConfig
from msad.training.training_data import TrainingData

CHANGED_TIMES = 3
"""How many times the rate of false alarms is allowed among good images that were changed."""

Report = Callable[[dict[str, Any], dict[str, Any]], None]
GetCheckpoint = Callable[[], dict[str, Any] | None]


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Of image scores and of pixels, each with what it promises; and the scores of the good images they rest on, G."""

    threshold: float
    false_alarms: FalseAlarms
    pixel_threshold: float
    false_regions: FalseRegions
    good_scores: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Fitted(Thresholds):
    """A job's best checkpoint: model, chosen scoring, thresholds, and the validation figures.

    `also_scored` are the positions of the training images whose scores come in `good_scores` behind those of the
    validation images.
    """

    model: AnomalyModel
    scorer: Scorer
    epoch: int
    validation: dict[str, Any]
    also_scored: tuple[int, ...] = ()


class BestCheckpoint:
    """The best weights so far, and what choosing them like this is worth on images that they were not chosen on.

    The highest of several evaluations is a choice too. So each half of the images has its own best epoch and scoring,
    whose reading on the other half is kept (see `msad.models.scoring`); the weights are those of the best epoch by
    both. Of several products each has a scoring of its own, and the best epoch is that of the highest mean.
    """

    def __init__(
        self,
        score: float = -math.inf,
        epoch: int = 0,
        model: dict[str, Tensor] | None = None,
        readings: Sequence[Sequence[Reading]] = (),
    ) -> None:
        self.score, self.epoch, self.model = score, epoch, model
        self.choices: list[Choice] = []
        self.readings = list(readings)  # of each half, product by product

    def update(self, score: float, epoch: int, choices: Sequence[Choice], model: AnomalyModel) -> None:
        """Hear of an evaluation, with the choice for each product."""
        if score > self.score:
            self.score, self.epoch, self.choices = score, epoch, list(choices)
            self.model = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        new = list(zip(*(choice.readings for choice in choices), strict=True))
        pairs = zip(self.readings or new, new, strict=True)
        self.readings = [max(pair, key=lambda half: sum(one.value for one in half)) for pair in pairs]

    @property
    def validations(self) -> list[ValidationScore]:
        """Of each product."""
        return [ValidationScore.of(readings) for readings in zip(*self.readings, strict=True)]

    def state(self) -> dict[str, Any]:
        """Give what a checkpoint holds, nothing but tensors, numbers and their containers."""
        readings = [[(reading.value, reading.per_group) for reading in half] for half in self.readings]
        return {"score": self.score, "epoch": self.epoch, "model": self.model, "readings": readings}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> BestCheckpoint:
        readings = [[Reading(*reading) for reading in half] for half in state["readings"]]
        return cls(**{**state, "readings": readings})

    def stale(self, epoch: int, job: JobConfig) -> bool:
        return bool(job.patience) and self.epoch > 0 and epoch - self.epoch >= job.patience * job.evaluate_every


@torch.no_grad()
def validate(
    model: AnomalyModel,
    batches: PlainBatches | FeatureBatches,
    data: TrainingData,
    job: JobConfig,
) -> Choice:
    """Score held-out good images against synthetic and known defects; choose the scoring that separates them best.

    Those images count a second time, changed in a way that leaves them good, see `msad.models.synthesis.nuisances`.

    Of an architecture with a fixed scoring there is nothing to choose, unless known defects speak for another one.

    The maps of the good images are kept while this runs, those of the defects a batch at a time. Smoothing is measured
    by the job's `view_size`, the side in pixels of what the network sees at once; the choice maximises its `objective`.

    Raises
    ------
    FloatingPointError
        The model has diverged: a map is not finite.
    """
    model.eval()
    good, changed = anomaly_maps(model, batches.validation()), anomaly_maps(model, batches.changed())
    roi, fixed = batches.roi, fixed_scoring(model, job.view_size)
    names = [name for name in good if name != IMAGE_SCORE] if roi else list(good)  # that is of the whole image
    if not names:
        raise ModelError("this architecture scores whole images alone: it cannot keep to a region of interest")
    others = default_candidates(names, job.view_size) if fixed is None or data.known else []
    candidates = [one for one in (fixed,) if one] + [one for one in others if one != fixed]
    defects = map_batches(model, itertools.chain(batches.synthetic(), batches.known()))
    return choose_scoring(good, defects, data.synthetic, candidates, job.objective, roi, data.known, fixed, changed)


def fixed_scoring(model: AnomalyModel, view_size: int) -> Scoring | None:
    """Return the scoring that an architecture is read by, None where it has none; `view_size` as in `JobConfig`."""
    if not model.fixed_scoring:
        return None
    fixed = Scoring(**model.fixed_scoring)
    return dataclasses.replace(fixed, smoothing=fixed.smoothing * view_size / 256)


@torch.no_grad()
def set_thresholds(
    model: AnomalyModel,
    batches: PlainBatches | FeatureBatches,
    data: TrainingData,
    scorer: Scorer,
    job: JobConfig,
    held_out: LeaveOneOut,
) -> Thresholds:
    """Score held-out good images, plain synthetic and known defects as the finished model does; cut between them.

    Each image is scored without what the scorer knows of it, as `held_out` does, which was made of the validation
    images and maybe of others that the model has not seen; pixels are cut by the maps of the good images alone, see
    `msad.models.false_regions`. Of images as they are both rates are kept, and promised; of the changed ones, which are
    further from the usual than most to come, `CHANGED_TIMES` these rates.
    """
    model.eval()
    plain = np.flatnonzero(data.synthetic.grade == GRADES.index("plain"))
    plain_scores, done = [], 0
    for maps in map_batches(model, batches.synthetic(plain)):
        count = len(next(iter(maps.values())))
        plain_scores.append(held_out.scores(maps, data.synthetic.source[plain[done : done + count]]))
        done += count
    known_scores = [scorer(maps)[1].double().cpu().numpy() for maps in map_batches(model, batches.known())]
    all_maps, all_scores = held_out.good()
    (good_maps, changed_maps), (good_scores, changed_scores) = (
        (of_all[: held_out.count], of_all[held_out.count :]) for of_all in (all_maps, all_scores)
    )
    defect_scores = [np.concatenate([np.empty(0), *parts]) for parts in (plain_scores, known_scores)]
    rate, regions_rate = job.false_positive_rate, job.false_regions_per_image
    cut = max(threshold(good_scores, rate, *defect_scores), threshold(changed_scores, min(CHANGED_TIMES * rate, 0.5)))
    pixel_cut = max(
        pixel_threshold(maps, times * regions_rate)[0]
        for maps, times in ((good_maps, 1), (changed_maps, CHANGED_TIMES))
    )
    return Thresholds(
        threshold=cut,
        false_alarms=FalseAlarms.of(good_scores, cut, rate),
        pixel_threshold=pixel_cut,
        false_regions=FalseRegions.of(good_maps, pixel_cut, regions_rate),
        good_scores=good_scores,
    )


def anomaly_maps(model: AnomalyModel, images: Iterable[Encoded]) -> dict[str, Tensor]:
    """Return the maps of all batches, by name, N×1×H×W; see `validate` for the error."""
    parts = list(map_batches(model, images))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def map_batches(model: AnomalyModel, images: Iterable[Encoded]) -> Iterator[dict[str, Tensor]]:
    """Yield the maps of one batch after the other, by name, B×1×H×W; see `validate` for the error."""
    for batch in images:
        maps = {name: map_B1HW.float() for name, map_B1HW in model.anomaly_maps(batch).items()}
        if not all(map_B1HW.isfinite().all() for map_B1HW in maps.values()):
            raise FloatingPointError("anomaly maps")
        yield maps


def figures(*validations: ValidationScore) -> dict[str, float]:
    """Return what is reported of a validation, by the names of the objectives; of several products' the means."""
    return {
        f"validation_{name}": sum(getattr(one, name) for one in validations) / len(validations)
        for name in ("score", "image_auroc", "pixel_ap")
    }


def told(
    choices: Sequence[Choice], epoch: int, best: BestCheckpoint, model: AnomalyModel, objective: str
) -> dict[str, Any]:
    """Let the best checkpoint hear of an evaluation; return what is reported of it.

    Of several products these are the means, and `products` holds the same of each, in their order.
    """
    now = [choice.validation for choice in choices]
    best.update(figures(*now)[objective], epoch, choices, model)
    kept = best.validations

    def both(now: Sequence[ValidationScore], kept: Sequence[ValidationScore]) -> dict[str, float]:
        return figures(*now) | {"best_objective": figures(*kept)[objective]}

    each = [both([one], [at_best]) for one, at_best in zip(now, kept, strict=True)]
    return both(now, kept) | ({"products": each} if len(each) > 1 else {})
