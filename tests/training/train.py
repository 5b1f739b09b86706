"""How the tests of this folder train a job: without Ray, and with all that it reports kept."""

from __future__ import annotations

import copy
from typing import Any

import torch

from msad.training.job_config import JobConfig
from msad.training.loop import fit
from msad.training.training_data import TrainingData
from msad.training.validation import Fitted
from msad.training.worker_group import SINGLE_WORKER, WorkerGroup


def train(
    job: JobConfig,
    data: TrainingData,
    *,
    checkpoint: dict[str, Any] | None = None,
    device: str = "cpu",
    group: WorkerGroup = SINGLE_WORKER,
) -> tuple[Fitted, list[dict[str, float]], list[dict[str, Any]]]:
    """Train a job, from the beginning or from a state; return what came of it, and each report's metrics and state."""
    reports, states = [], []
    fitted = fit(
        job,
        data,
        device=torch.device(device),
        report=lambda metrics, state: (reports.append(metrics), states.append(copy.deepcopy(state))),
        get_checkpoint=lambda: checkpoint,
        group=group,
    )
    return fitted, reports, states
