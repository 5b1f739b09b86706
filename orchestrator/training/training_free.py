"""The training of a network that takes no steps: it looks at the good images once, and is validated."""

from __future__ import annotations

import time

import torch

from msad.errors import TrainingError
from msad.models.base import AnomalyModel
from msad.training.batches import adapt, make_batches
from msad.training.cross_fitting import fit_delivered
from msad.training.job_config import JobConfig
from msad.training.training_data import TrainingData
from msad.training.validation import BestCheckpoint, Fitted, Report, figures, fitted, validate


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
    return fitted(model, *fit_delivered(job, model, looked_at, data, choice.scorer.scoring), best)
