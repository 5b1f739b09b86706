"""A job's parameters by their slash paths: which there are, what is wrong with some, what those left out mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from numbers import Real
from typing import Any

from msad.models.errors import did_you_mean
from msad.models.registry import architecture as architecture_class
from msad.models.registry import default_parameters
from msad.models.synthesis.augmentation import AugmentationConfig
from msad.models.synthesis.corruptions import CorruptionConfig
from msad.models.tiling import TilingConfig
from msad.training.job_config import OPEN_GROUPS, JobConfig

SETTINGS = {"corruption": CorruptionConfig, "augmentation": AugmentationConfig, "tiling": TilingConfig}


def flatten(parameters: Mapping[Any, Any]) -> dict[str, Any]:
    """Return slash paths for parameters that are nested, as YAML invites to write them: `{"model": {"depth": 3}}`."""
    flat: dict[str, Any] = {}
    for name, value in parameters.items():
        if isinstance(value, Mapping) and name in OPEN_GROUPS:
            flat |= {f"{name}/{key}": part for key, part in value.items()}
        else:
            flat[str(name)] = value
    return flat


def known_paths(architecture: str) -> tuple[str, ...]:
    """Return every path that can be set in a job of an architecture."""
    plain = [field.name for field in dataclasses.fields(JobConfig)]
    return (
        *(name for name in plain if name not in (*OPEN_GROUPS, "category", "architecture", "joint")),
        *(f"model/{name}" for name in default_parameters(architecture)),
        *(f"loss_weights/{term}" for term in architecture_class(architecture).loss_terms),
        *(f"{group}/{field.name}" for group, kind in SETTINGS.items() for field in dataclasses.fields(kind)),
    )


def unknown_paths(parameters: Collection[str], architectures: Collection[str]) -> list[str]:
    """Return a line, with the nearest name, for each path that none of the architectures has."""
    known = list(dict.fromkeys(path for name in architectures for path in known_paths(name)))
    return [f"unknown parameter {path!r}{did_you_mean(path, known)}" for path in parameters if path not in known]


def check_values(job: JobConfig) -> None:
    """Refuse values out of range in the groups that `JobConfig` leaves open; the model checks its own when it is built.

    Raises
    ------
    ValueError
        All of them in one message.
    """
    problems = [
        f"loss_weights/{term} is {weight!r}; it must be a number, 0 (off) or more"
        for term, weight in job.loss_weights.items()
        if isinstance(weight, bool) or not isinstance(weight, Real) or not weight >= 0
    ]
    for group, kind in SETTINGS.items():
        given = getattr(job, group)
        try:
            kind(**given)
        except ValueError as error:
            problems.append(str(error))
        except TypeError:
            problems.append(f"{group}: {dict(given)!r} holds a value of the wrong type")
    if problems:
        raise ValueError("; ".join(problems))


def written_out(job: JobConfig) -> JobConfig:
    """Return a job with everything that it leaves to defaults filled in: what training makes of it."""
    return dataclasses.replace(
        job,
        model={**default_parameters(job.architecture), **job.model},
        loss_weights=dict(job.loss_weights) or dict(architecture_class(job.architecture).default_loss_weights),
        **{group: dataclasses.asdict(kind(**getattr(job, group))) for group, kind in SETTINGS.items()},
    )
