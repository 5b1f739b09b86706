"""`feature_pyramid`: how narrow the bottleneck is, how wide the decoder, and how the tasks weigh.

What changes the features (the backbone, the corruption) is not searched by default: all trials share one set of them.
"""

from __future__ import annotations

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

SPACE: dict[str, BaseDistribution] = {
    "learning_rate": FloatDistribution(5e-4, 5e-3, log=True),
    "model/width": CategoricalDistribution((96, 128, 192, 256)),
    "model/bottleneck_channels": CategoricalDistribution((16, 32, 48, 96, 192)),
    "model/dropout": FloatDistribution(0.0, 0.4),
    "loss_weights/cosine": FloatDistribution(0.1, 10.0, log=True),
    "loss_weights/squared": FloatDistribution(0.1, 10.0, log=True),
    "loss_weights/focal": FloatDistribution(1.0, 100.0, log=True),
    "loss_weights/dice": FloatDistribution(0.1, 10.0, log=True),
}
