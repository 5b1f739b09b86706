"""The training of a network that trains itself: its own recipe, under the same validation as any other."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from msad.errors import Diverged
from msad.models.base import SelfTraining
from msad.training.job_config import JobConfig
from msad.training.products import Products
from msad.training.training_data import TrainingData
from msad.training.validation import BestCheckpoint, Fitted, Report, told


def fit_itself(
    job: JobConfig, model: SelfTraining, data: Sequence[TrainingData], device: torch.device, report: Report
) -> list[Fitted]:
    """Let a model train itself, on all products' images alike, and return its best epoch by the job's objective.

    It is validated every `job.evaluate_every` epochs and at its end, and stopped after `job.patience` evaluations
    without a better one. Only the recipe knows its own state, so an interrupted job begins anew.

    Raises
    ------
    Diverged
        The model's maps are not finite.
    """
    products, best = Products(job, data, model, device, plain=True), BestCheckpoint()
    began, since, last = time.perf_counter(), 0, 0

    def evaluate(epoch: int, metrics: Mapping[str, float]) -> None:
        nonlocal began, since
        seconds = (time.perf_counter() - began) / max(1, epoch - since)
        try:
            choices = products.validate()
        except FloatingPointError:
            raise Diverged(f"the anomaly maps of {job.architecture} are not finite in epoch {epoch}") from None
        known = {name: value for name, value in metrics.items() if math.isfinite(value)}
        known |= {"epoch": epoch, "epoch_seconds": seconds}
        report(known | told(choices, epoch, best, model, job.objective), {"epoch": epoch})
        began, since = time.perf_counter(), epoch

    def after_epoch(epoch: int, metrics: Mapping[str, float]) -> bool:
        nonlocal last
        last = epoch
        if epoch % job.evaluate_every == 0:
            evaluate(epoch, metrics)
        return not best.stale(epoch, job)

    model.train()
    images_NHWC = np.concatenate([one.train_NHWC for one in data]) if len(data) > 1 else data[0].train_NHWC
    model.fit(images_NHWC, epochs=job.epochs, batch_size=job.batch_size, seed=job.seed, after_epoch=after_epoch)
    if last == 0 or not best.stale(last, job):
        evaluate(last + 1, {})  # the last epoch is not heard of
    model.load_state_dict(best.model)
    return products.fitted(products.settle(best.choices), best)
