"""A model on the validation images: its maps, the scoring that suits them, and the best weights so far.

Tensors are named by shape: B images of a batch, C channels, H×W pixels, N images of a set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.base import AnomalyModel, Encoded
from models.scoring import Choice, Scorer, choose_scoring, default_candidates, threshold
from models.synthesis.synthetic_defects import SyntheticSet
from orchestrator.fitting.batches import FeatureBatches, PlainBatches
from orchestrator.job_config import JobConfig

Report = Callable[[dict[str, float], dict[str, Any]], None]
GetCheckpoint = Callable[[], dict[str, Any] | None]


@dataclass(frozen=True)
class Fitted:
    """A job's best checkpoint: the model, its chosen scoring, the threshold and the validation figures."""

    model: AnomalyModel
    scorer: Scorer
    threshold: float
    epoch: int
    validation: dict[str, Any]


class Best:
    """The best weights so far and what they scored."""

    def __init__(self, score: float = -math.inf, epoch: int = 0, model: dict[str, Tensor] | None = None) -> None:
        self.score, self.epoch, self.model, self.choice = score, epoch, model, None

    def offer(self, score: float, epoch: int, choice: Choice, model: AnomalyModel) -> None:
        if score > self.score:
            self.score, self.epoch, self.choice = score, epoch, choice
            self.model = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}

    def stale(self, epoch: int, job: JobConfig) -> bool:
        return bool(job.patience) and self.epoch > 0 and epoch - self.epoch >= job.patience * job.evaluate_every


@torch.no_grad()
def validate(
    model: AnomalyModel, batches: PlainBatches | FeatureBatches, synthetic: SyntheticSet, view_size: int
) -> Choice:
    """Score held-out good images against their synthetic defects and choose the scoring that separates them best.

    The maps of the good images are kept while this runs, those of the defects a batch at a time. `view_size` is the
    side in pixels of what the network sees at once, by which smoothing is measured.

    Raises
    ------
    FloatingPointError
        The model has diverged: a map is not finite.
    """
    model.eval()
    good = anomaly_maps(model, batches.validation())
    candidates = default_candidates(tuple(good), view_size)
    return choose_scoring(good, map_batches(model, batches.synthetic()), synthetic, candidates)


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


def figures(choice: Choice) -> dict[str, float]:
    """Return what is reported of a validation, by the names of the objectives."""
    return {
        "validation_score": choice.validation.score,
        "validation_image_auroc": choice.validation.image_auroc,
        "validation_pixel_ap": choice.validation.pixel_ap,
    }


def fitted(job: JobConfig, model: AnomalyModel, choice: Choice, epoch: int) -> Fitted:
    """Return a model that holds its best weights with the scoring that was chosen for them, and the threshold."""
    return Fitted(
        model=model.eval(),
        scorer=choice.scorer,
        threshold=threshold(choice.good_scores, job.false_positive_rate, choice.plain_scores),
        epoch=epoch,
        validation={
            "score": choice.validation.score,
            "image_auroc": choice.validation.image_auroc,
            "pixel_ap": choice.validation.pixel_ap,
            "per_group": choice.validation.per_group,
        },
    )
