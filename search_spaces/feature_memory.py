"""`feature_memory`: how many places it keeps and how large they are, and whether light counts.

What changes the features beyond that (the backbone, the stages) is not searched by default.
"""

from __future__ import annotations

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from msad.models.frozen_features import LIGHTS

SPACE: dict[str, BaseDistribution] = {
    "model/rows": CategoricalDistribution((1000, 4000, 16000)),
    "model/neighbourhood": CategoricalDistribution((1, 3, 5)),
    "model/neighbours": IntDistribution(1, 9),
    "model/light": CategoricalDistribution(LIGHTS),
    "augmentation/kind": CategoricalDistribution(("auto", "none")),
}
