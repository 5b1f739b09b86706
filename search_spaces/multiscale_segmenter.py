"""`multiscale_segmenter`: how wide both networks are, how the two tasks weigh, and what is corrupted."""

from __future__ import annotations

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from msad.search_spaces.shared import RECONSTRUCTION

SPACE: dict[str, BaseDistribution] = {
    **RECONSTRUCTION,
    "model/base_width": CategoricalDistribution((16, 24, 32)),
    "model/segment_width": CategoricalDistribution((16, 24, 32)),
    # None continues the doubling of the channels.
    "model/bottleneck_channels": CategoricalDistribution((None, 32, 128)),
    "loss_weights/focal": FloatDistribution(0.1, 10.0, log=True),
    "loss_weights/dice": FloatDistribution(0.1, 10.0, log=True),
}
