"""Names to architectures. To add one: write its file, decorate its class with `register`, list the file in `_FILES`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from models.base import AnomalyModel
from models.errors import ModelError, did_you_mean

_FILES = ("baseline", "feature_pyramid", "multiscale", "multiscale_segmenter")
_BUILDERS: dict[str, type[AnomalyModel]] = {}


def register(name: str) -> Callable[[type[AnomalyModel]], type[AnomalyModel]]:
    """Return a class decorator that makes an architecture known under `name`."""

    def add(architecture: type[AnomalyModel]) -> type[AnomalyModel]:
        if _BUILDERS.setdefault(name, architecture) is not architecture:
            raise ModelError(f"architecture {name!r} is registered twice, by {_BUILDERS[name]} and {architecture}")
        return architecture

    return add


def architectures() -> tuple[str, ...]:
    """Return the name of every registered architecture, sorted."""
    for file in _FILES:  # here and not at the top: those files import this one
        importlib.import_module(f"models.{file}")
    return tuple(sorted(_BUILDERS))


def architecture(name: str) -> type[AnomalyModel]:
    """Return the class registered under `name`; an unknown name is a ModelError with the nearest one."""
    if name not in architectures():
        raise ModelError(f"unknown architecture {name!r}{did_you_mean(name, architectures())}")
    return _BUILDERS[name]


def default_parameters(name: str) -> dict[str, Any]:
    """Return the parameters of an architecture with their defaults."""
    parameters = inspect.signature(architecture(name)).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters}


def build(name: str, **parameters: Any) -> AnomalyModel:
    """Build an architecture with freshly drawn weights.

    Parameters
    ----------
    name
        One of `architectures()`.
    **parameters
        The architecture's own; those left out keep their defaults.

    Raises
    ------
    ModelError
        The name or a parameter is unknown (the nearest is named), or a value is out of range.
    """
    known = default_parameters(name)
    for parameter in parameters:
        if parameter not in known:
            raise ModelError(f"unknown parameter {parameter!r} of {name!r}{did_you_mean(parameter, known)}")
    return architecture(name)(**parameters)


def count_parameters(model: nn.Module) -> int:
    """Return how many numbers training changes."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
