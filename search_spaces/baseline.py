"""`baseline`: without skips, the bottleneck decides how much of a defect can pass."""

from __future__ import annotations

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from msad.search_spaces.shared import RECONSTRUCTION

SPACE: dict[str, BaseDistribution] = {
    **RECONSTRUCTION,
    "model/base_width": CategoricalDistribution((16, 24, 32)),
    "model/depth": IntDistribution(3, 4),
    # None continues the doubling of the channels.
    "model/bottleneck_channels": CategoricalDistribution((None, 16, 64, 128, 256)),
}
