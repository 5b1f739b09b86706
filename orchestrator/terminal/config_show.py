"""What a configuration comes to: every setting, and the job and the searched ranges of every architecture."""

from __future__ import annotations

from typing import Any

import yaml

from msad.search.config import SweepConfig
from msad.search.preflight import check_models, with_names
from msad.search.study import default_parameters
from msad.search.study_record import plain_range
from msad.sweep.launch import resolved
from msad.training.parameters import written_out


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
    msad.data_io.errors.DataError
        The dataset is there and has no such category.
    """
    config = resolved(config)
    if config.dataset.exists():
        config = with_names(config, config.layout)
    studies = {}
    for architecture, space in check_models(config).items():
        base = config.job("", architecture)
        job = written_out(base.with_parameters(default_parameters(base, space))).to_dict()
        unknown = {"category", "architecture"} | ({"bit_depth"} if config.bit_depth is None else set())  # of the images
        unknown |= {"image_size"} if isinstance(base.image_size, int) else set()  # whose shape decides what it comes to
        named = {name: value for name, value in job.items() if name not in unknown}
        studies[architecture] = {"job": named, "searched": {path: _Line(plain_range(space[path])) for path in space}}
    return config.model_dump(mode="json"), studies


def to_yaml(settings: dict[str, Any], studies: dict[str, Any]) -> str:
    """Return `describe`'s parts as YAML of two documents; `load` reads the first, so it is a configuration file too."""
    return (
        "# The settings of the sweep.\n"
        + _dump(settings)
        + "---\n# What follows: the job each architecture starts from, and what is searched.\n"
        + _dump({"studies": studies})
    )


class _Line(dict):
    """A mapping that YAML shows on one line."""


class _Dumper(yaml.SafeDumper):
    """Shows a range on one line, and all else as lines below one another."""


_Dumper.add_representer(_Line, lambda dumper, line: dumper.represent_mapping("tag:yaml.org,2002:map", line, True))


def _dump(values: dict[str, Any]) -> str:
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=80)
