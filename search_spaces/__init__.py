"""Which knobs a search turns: one short file per architecture, and the knobs that all reconstructing ones share.

A space maps slash paths into a job's configuration (`learning_rate`, `model/depth`, `loss_weights/ssim`) to Optuna
distributions. They are small on purpose: a study of tens of trials cannot explore more. Every space contains the
architecture's defaults, so that a search can start from them.
"""

from __future__ import annotations

import importlib
import pkgutil

from optuna.distributions import BaseDistribution

from models.errors import did_you_mean


def architectures() -> tuple[str, ...]:
    """Return the architectures that have a search space, sorted."""
    return tuple(sorted(name for _, name, _ in pkgutil.iter_modules(__path__) if name != "shared"))


def space(architecture: str) -> dict[str, BaseDistribution]:
    """Return a new dictionary of what a search may change for an architecture.

    Raises
    ------
    ValueError
        The architecture has no search space; the nearest name is given.
    """
    known = architectures()
    if architecture not in known:
        raise ValueError(f"architecture {architecture!r} has no search space{did_you_mean(architecture, known)}")
    return dict(importlib.import_module(f"search_spaces.{architecture}").SPACE)
