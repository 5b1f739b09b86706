"""A set of synthetic defects without an image, for maps of noise."""

from __future__ import annotations

import numpy as np

from msad.models.synthesis.synthetic_defects import SyntheticSet


def noise_set(count, rng):
    """Where defects would be on so many good images; there is no image, for the maps of the test have seen none."""
    made = [
        (group // 3, group % 3, rng.permutation(np.arange((position + group) % 2, count, 2))[position // 2])
        for group in range(18)
        for position in range(6)
    ]
    masks = np.zeros((len(made), 24, 24), bool)
    for mask in masks:
        y, x, height, width = *rng.integers(0, 16, 2), *rng.integers(2, 8, 2)
        mask[y : y + height, x : x + width] = True
    family, grade, source = np.array(made).T
    return SyntheticSet(np.empty((len(made), 0)), masks, family, grade, source)
