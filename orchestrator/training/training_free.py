"""The training of a network that takes no steps: it looks at the good images once, and is validated."""

from __future__ import annotations

import time

import torch

from msad.errors import TrainingError
from msad.models.base import AnomalyModel
from msad.training.batches import TrainingData, adapt, make_batches
from msad.training.job_config import JobConfig
from msad.training.validation import BestCheckpoint, Fitted, Report, figures, fitted, set_thresholds, validate


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
    batches = make_batches(job, data, model, device)
    adapt(model, batches)
    try:
        choice = validate(model, batches, data.synthetic, job.view_size, job.objective)
    except FloatingPointError:
        raise TrainingError(f"the anomaly maps of {job.architecture} are not finite: are its features?") from None
    told, seconds = figures(choice.validation), time.perf_counter() - began
    best.update(told[job.objective], 1, choice, model)
    report({"epoch": 1, "epoch_seconds": seconds, **told, "best_objective": told[job.objective]}, {"epoch": 1})
    thresholds = set_thresholds(model, batches, data.synthetic, choice.scorer.scoring, job)
    return fitted(model, choice.scorer, thresholds, best)
