"""The training of a network that takes no steps: it looks at the good images once, and is validated.

Such a network can be made again without some of its images in seconds, so the images it learned from become held-out
ones as well (cross-fitting, as in cross-conformal prediction: Vovk, Annals of Mathematics and Artificial Intelligence
74, 2015): what is usual at a position, and the thresholds, rest on hundreds of good images instead of tens.
"""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from torch import Tensor

from msad.errors import TrainingError
from msad.models.base import AnomalyModel
from msad.models.scorer import fit_scorer
from msad.training.batches import adapt, batches, make_batches
from msad.training.job_config import JobConfig
from msad.training.training_data import TrainingData
from msad.training.validation import (
    BestCheckpoint,
    Fitted,
    Report,
    anomaly_maps,
    figures,
    fitted,
    set_thresholds,
    validate,
)

FOLDS = 4
"""Parts of the training images, each of which is left out once."""

_CROSS_FITTED = 1 << 24  # pixels of training images that are scored so: 256 images of 256 pixels


def fit_training_free(
    job: JobConfig, model: AnomalyModel, data: TrainingData, device: torch.device, report: Report
) -> Fitted:
    """Let a model without loss terms `adapt` to the good images, and choose its scoring.

    It takes seconds where the features are kept from an earlier job, so an interrupted job begins anew.

    Raises
    ------
    TrainingError
        The model's maps are not finite.
    """
    began, best = time.perf_counter(), BestCheckpoint()
    looked_at = make_batches(job, data, model, device)
    adapt(model, looked_at)
    try:
        choice = validate(model, looked_at, data, job)
    except FloatingPointError:
        raise TrainingError(f"the anomaly maps of {job.architecture} are not finite: are its features?") from None
    told, seconds = figures(choice.validation), time.perf_counter() - began
    best.update(told[job.objective], 1, choice, model)
    report({"epoch": 1, "epoch_seconds": seconds, **told, "best_objective": told[job.objective]}, {"epoch": 1})
    held_out, also_scored = with_training_images(job, model, data, anomaly_maps(model, looked_at.validation()))
    scorer = fit_scorer(choice.scorer.scoring, held_out, looked_at.roi)
    thresholds = set_thresholds(model, looked_at, data, scorer, job, held_out)
    return fitted(model, scorer, thresholds, best, also_scored)


@torch.no_grad()
def with_training_images(
    job: JobConfig, model: AnomalyModel, data: TrainingData, validation_maps: dict[str, Tensor]
) -> tuple[dict[str, Tensor], list[int]]:
    """Return the maps of validation images, and behind them of training images by the model as without them and others.

    Also the positions of these; none if the model cannot tell.
    """
    count, device = len(data.train_NHWC), next(iter(validation_maps.values())).device
    most = max(FOLDS, _CROSS_FITTED // math.prod(job.sides))
    scored_N = np.unique(np.linspace(0, count - 1, most).round().astype(int))
    parts, also_scored = [validation_maps], []
    for fold in range(FOLDS):
        left_out_N = np.arange(fold, count, FOLDS)
        chosen_N = np.intersect1d(scored_N, left_out_N)
        if len(chosen_N) and len(left_out_N) < count and (other := model.without(left_out_N, count)) is not None:
            parts.append(anomaly_maps(other.eval(), batches(data.train_NHWC, device, job.batch_size, chosen_N)))
            also_scored += chosen_N.tolist()
    return {name: torch.cat([part[name] for part in parts]) for name in validation_maps}, also_scored
