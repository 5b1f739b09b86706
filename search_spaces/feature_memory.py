"""`feature_memory`: how many places it keeps and how large they are.

What changes the features (the backbone, the stages) is not searched by default. Nor is light: synthetic defects lie in
the light of the good images, so they cannot say what another light would do.
"""

from __future__ import annotations

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

SPACE: dict[str, BaseDistribution] = {
    "model/rows": CategoricalDistribution((6_000, 12_000, 24_000)),
    "model/neighbourhood": CategoricalDistribution((1, 3, 5)),
    "model/neighbours": IntDistribution(1, 9),
    "augmentation/kind": CategoricalDistribution(("auto", "none")),
}
