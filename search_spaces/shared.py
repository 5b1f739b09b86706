"""The knobs of every architecture that learns to reconstruct: step size, loss weights, augmentation, corruption."""

from __future__ import annotations

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

# AdamW does not feel the scale of the loss, so only the ratios of the weights count.
RECONSTRUCTION: dict[str, BaseDistribution] = {
    "learning_rate": FloatDistribution(2e-4, 5e-3, log=True),
    "loss_weights/l1": FloatDistribution(0.1, 10.0, log=True),
    "loss_weights/mse": FloatDistribution(0.1, 10.0, log=True),
    "loss_weights/ssim": FloatDistribution(0.1, 10.0, log=True),
    "loss_weights/gms": FloatDistribution(0.1, 10.0, log=True),
    "augmentation/kind": CategoricalDistribution(("auto", "none")),
    "corruption/probability": FloatDistribution(0.3, 1.0),
    "corruption/strength": FloatDistribution(0.3, 1.0),
}
