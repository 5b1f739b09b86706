"""The training of a network that takes no steps: it looks at the good images once, and is validated."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from msad.errors import TrainingError
from msad.models.base import AnomalyModel
from msad.training.job_config import JobConfig
from msad.training.products import Products
from msad.training.training_data import TrainingData
from msad.training.validation import BestCheckpoint, Fitted, Report, told


def fit_training_free(
    job: JobConfig, model: AnomalyModel, data: Sequence[TrainingData], device: torch.device, report: Report
) -> list[Fitted]:
    """Let a model without loss terms `adapt` to the good images, and choose its scoring.

    It takes seconds where the features are kept from an earlier job, so an interrupted job begins anew.

    Raises
    ------
    TrainingError
        The model's maps are not finite.
    """
    began, best = time.perf_counter(), BestCheckpoint()
    products = Products(job, data, model, device)
    products.adapt()
    try:
        choices = products.validate()
    except FloatingPointError:
        raise TrainingError(f"the anomaly maps of {job.architecture} are not finite: are its features?") from None
    seconds = time.perf_counter() - began
    report({"epoch": 1, "epoch_seconds": seconds} | told(choices, 1, best, model, job.objective), {"epoch": 1})
    return products.fitted(products.settle(choices), best)
