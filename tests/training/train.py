"""How the tests of this folder train a job: without Ray, and with all that it reports kept."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch

from msad.models.synthesis.synthetic_defects import make_synthetic_defects
from msad.training.job_config import JobConfig
from msad.training.loop import fit
from msad.training.training_data import TrainingData
from msad.training.validation import Fitted
from msad.training.worker_group import SINGLE_WORKER, WorkerGroup


def shaded() -> TrainingData:
    """Return twelve good images of a shaded noise, 64 pixels each, and eight to validate on."""
    rng = np.random.default_rng(0)
    base = np.tile(np.linspace(60, 190, 64)[:, None, None], (1, 64, 3))
    images = (base + rng.integers(-5, 5, (20, 64, 64, 3))).astype(np.uint8)
    return TrainingData(images[:12], images[12:], make_synthetic_defects(images[12:], 0))


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
