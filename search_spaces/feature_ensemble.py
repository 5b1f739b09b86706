"""`feature_ensemble`: what `feature_pyramid` and `feature_memory` search, but for what changes the features."""

from __future__ import annotations

from optuna.distributions import BaseDistribution

from msad.search_spaces import feature_memory, feature_pyramid

SPACE: dict[str, BaseDistribution] = feature_pyramid.SPACE | {
    path: feature_memory.SPACE[path] for path in ("model/rows", "model/neighbourhood", "model/neighbours")
}
