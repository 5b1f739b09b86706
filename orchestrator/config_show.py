"""What a configuration comes to: every setting, and the job and the searched ranges of every architecture."""

from __future__ import annotations

from typing import Any

import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution

from data_io.layout import choose_categories
from orchestrator.config import SweepConfig
from orchestrator.parameters import written_out
from orchestrator.preflight import check_models
from orchestrator.study import default_parameters
from orchestrator.sweep import resolved


def describe(config: SweepConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Resolve a configuration without starting anything; only the names of the dataset's folders are looked at.

    Returns
    -------
    tuple
        The settings, which `make_config` takes again; and per architecture `job`, the one of the defaults, from which a
        search starts, and `searched`, the ranges. All of it is plain JSON. The categories are those of the dataset
        where it is there, else the ones given.

    Raises
    ------
    ConfigError
        An architecture cannot work at this image size, or a fixed parameter is wrong.
    data_io.errors.DataError
        The dataset is there and has no such category.
    """
    config = resolved(config)
    if config.dataset.exists():
        names = choose_categories(config.dataset, config.categories or None)
        config = config.model_copy(update={"categories": tuple(names)})
    studies = {}
    for architecture, space in check_models(config).items():
        base = config.job("", architecture)
        job = written_out(base.with_parameters(default_parameters(base, space))).to_dict()
        named = {name: value for name, value in job.items() if name not in ("category", "architecture")}
        studies[architecture] = {"job": named, "searched": {path: _range(space[path]) for path in space}}
    return config.model_dump(mode="json"), studies


def to_yaml(settings: dict[str, Any], studies: dict[str, Any]) -> str:
    """Return `describe`'s parts as YAML of two documents; `load` reads the first, so it is a configuration file too."""
    dump = {"sort_keys": False, "allow_unicode": True, "width": 80, "default_flow_style": None}
    return (
        "# The settings of the sweep.\n"
        + yaml.safe_dump(settings, **dump)
        + "---\n# What follows from them: the job that each architecture starts from, and what is searched.\n"
        + yaml.safe_dump({"studies": studies}, **dump)
    )


def _range(distribution: BaseDistribution) -> dict[str, Any]:
    if isinstance(distribution, CategoricalDistribution):
        return {"choices": list(distribution.choices)}
    span: dict[str, Any] = {"low": distribution.low, "high": distribution.high}
    if distribution.step not in (None, 1):
        span["step"] = distribution.step
    return span | ({"log": True} if distribution.log else {})
