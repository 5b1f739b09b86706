"""Which knobs a search turns: one short file per architecture, and the knobs that all reconstructing ones share.

A space maps slash paths into a job's configuration (`learning_rate`, `model/depth`, `loss_weights/ssim`) to Optuna
distributions. They are small on purpose: a study of tens of trials cannot explore more. Every space contains the
architecture's defaults, so that a search can start from them.

An architecture from outside brings its own as the class attribute `search_space`; any architecture can be searched in
another one, named by a Python path or by an entry point of the group `msad.search_spaces`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution

from msad.models.errors import ModelError, did_you_mean
from msad.models.plugins import described, load_python_path, named_entry_points
from msad.models.registry import architecture as architecture_class

GROUP = "msad.search_spaces"


def architectures() -> tuple[str, ...]:
    """Return the architectures that have a file here, sorted."""
    return tuple(sorted(name for _, name, _ in pkgutil.iter_modules(__path__) if name != "shared"))


def space(architecture: str, source: str | None = None) -> dict[str, BaseDistribution]:
    """Return a new dictionary of what a search may change for an architecture; empty where it offers nothing.

    Parameters
    ----------
    architecture
        Its name; see `msad.models.registry.architecture`.
    source
        Another space than the architecture's: a Python path `package.module:NAME`, or the name of an entry point.

    Raises
    ------
    ModelError
        The architecture or the source is unknown, or the space is not one.
    """
    kind = architecture_class(architecture)
    if source is not None:
        return _checked(_load(source), f"search space {source!r}")
    if architecture in architectures():
        return dict(importlib.import_module(f"{__name__}.{architecture}").SPACE)
    return _checked(kind.search_space, f"{architecture}'s search_space")


def _load(source: str) -> Any:
    known = named_entry_points(GROUP)
    if ":" in source:
        return load_python_path(source, wanted=Mapping)
    if source not in known:
        raise ModelError(
            f"unknown search space {source!r}{did_you_mean(source, known)}; "
            "one of your own is named by its Python path, e.g. my_package.my_module:SPACE"
        )
    if len(known[source]) > 1:
        claims = " and by ".join(described(point) for point in known[source])
        raise ModelError(f"search space {source!r} is claimed by {claims}: rename one, or give its Python path")
    return load_python_path(known[source][0].value, wanted=Mapping)


def _checked(found: Any, what: str) -> dict[str, BaseDistribution]:
    """Return a space as a dictionary; a function is called first."""
    made = found() if callable(found) else found
    if not isinstance(made, Mapping):
        raise ModelError(f"{what} is {type(made).__name__}; it must be a dictionary of slash paths and distributions")
    for path, distribution in made.items():
        if not isinstance(distribution, BaseDistribution):
            raise ModelError(
                f"{what}: {path!r} is {distribution!r}, not a distribution of optuna.distributions, "
                "e.g. FloatDistribution(1e-4, 1e-2, log=True)"
            )
    return dict(made)
