"""Which of the jobs that a search may try takes the most memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution

from msad.models.backbones import untrained
from msad.models.errors import ModelError
from msad.models.registry import build
from msad.training.job_config import JobConfig


def heaviest(job: JobConfig, space: Mapping[str, BaseDistribution]) -> JobConfig:
    """Return a job with the values of a search space that take the most memory.

    Of the batch size and loss weights those are the highest; of each parameter of the model, the one that gives the
    most weights, one parameter after the other. What else is searched takes no memory worth counting.
    """

    def weights(path: str, value: Any) -> int:
        try:
            with untrained():
                model = build(job.architecture, **job.with_parameters({path: value}).model)
        except ModelError:  # two values that do not go together; a search will meet them too
            return 0
        return sum(parameter.numel() for parameter in model.parameters())

    for path, distribution in space.items():
        if isinstance(distribution, CategoricalDistribution):
            values = list(distribution.choices)
        else:
            values = [distribution.high, distribution.low]  # of equals the first is taken
        if path == "batch_size" or path.startswith("loss_weights/"):
            job = job.with_parameters({path: max(values)})
        elif path.startswith("model/"):
            job = job.with_parameters({path: max(values, key=lambda value: weights(path, value))})
    return job
