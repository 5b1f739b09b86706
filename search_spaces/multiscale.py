"""`multiscale`: beside the bottleneck, how and from which level on the skips join decides what a defect can pass."""

from __future__ import annotations

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from msad.models.blocks import SKIPS
from msad.search_spaces.shared import RECONSTRUCTION

SPACE: dict[str, BaseDistribution] = {
    **RECONSTRUCTION,
    "model/base_width": CategoricalDistribution((16, 24, 32)),
    "model/depth": IntDistribution(3, 4),
    # None continues the doubling of the channels.
    "model/bottleneck_channels": CategoricalDistribution((None, 16, 64, 128, 256)),
    "model/skip": CategoricalDistribution(SKIPS),
    "model/skip_dropout": FloatDistribution(0.0, 0.5),
    "model/first_skip": IntDistribution(0, 2),
}
