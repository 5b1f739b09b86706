"""The pixel threshold keeps its rate: by hand, at every higher threshold, and on images that it has not seen."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from msad.models.errors import ModelError
from msad.models.false_regions import FalseRegions, pixel_threshold
from msad.models.regions import find_regions


def smooth_noise(rng, count, side=48):
    return [gaussian_filter(rng.normal(size=(side, side)), 2) * 10 for _ in range(count)]


def number(maps, threshold):
    return sum(len(find_regions(one, threshold)) for one in maps)


def test_pixel_threshold_counts_regions_by_hand():
    one = np.zeros((3, 9))
    one[1] = 0, 5, 0, 3, 0, 0, 4, 0, 0
    maps = [one, np.full((3, 9), 2.0), *np.zeros((7, 3, 9))]
    # Of 9 images, a rate of 0.4 allows 3 regions: those of height 5, 4 and 3. At 2 there is a fourth.
    assert pixel_threshold(maps, 0.4) == (2.0, FalseRegions(0.4, 9, 3, 0.4))
    assert pixel_threshold(maps, 0.2) == (4.0, FalseRegions(0.2, 9, 1, 0.2))
    assert FalseRegions.of(maps, 2.0, 0.4) == FalseRegions(0.4, 9, 3, 0.4)
    assert FalseRegions.of(maps[:1], 1.9, 0.4) == FalseRegions(0.4, 1, 3, 2.0)


def test_pixel_threshold_of_too_few_images_is_the_highest_value():
    maps = smooth_noise(np.random.default_rng(0), 5)
    cut, promised = pixel_threshold(maps, 0.1)
    assert cut == max(one.max() for one in maps)
    assert promised == FalseRegions(0.1, 5, 0, 1 / 6)  # not the rate asked for: so few promise no more


def test_no_higher_pixel_threshold_has_more_regions_than_are_allowed():
    maps = smooth_noise(np.random.default_rng(1), 30)
    # A ring that parts into many regions as the threshold rises: counted at one threshold alone it is one.
    ring = np.zeros((48, 48))
    ring[10, 5:40], ring[10, 5:40:3] = 20, 21
    cut, promised = pixel_threshold([*maps, ring], 0.2)
    assert promised.regions <= 32 * 0.2 - 1 and cut == 21
    cut, promised = pixel_threshold(maps, 0.5)
    counts = [number(maps, level) for level in np.linspace(cut, max(one.max() for one in maps), 200)]
    assert max(counts) <= 31 * 0.5 - 1 and promised.regions >= counts[0]
    assert number(maps, np.nextafter(cut, -np.inf)) > 31 * 0.5 - 1  # and it is the lowest such


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_share_of_new_good_images_with_a_region_keeps_the_rate(rate):
    rng, shares = np.random.default_rng(2), []
    for _ in range(60):
        cut, promised = pixel_threshold(smooth_noise(rng, 19, 24), rate)
        assert promised.expected == pytest.approx(rate)
        shares.append(np.mean([one.max() > cut for one in smooth_noise(rng, 20, 24)]))
    spread = np.std(shares) / np.sqrt(len(shares))
    assert 0.3 * rate < np.mean(shares) < rate + 2 * spread


@pytest.mark.parametrize(
    ("maps", "rate", "words"),
    [([], 0.1, "got 0 maps"), ([np.full((2, 2), np.nan)], 0.1, "finite maps"), ([np.zeros((2, 2))], 0.0, "above 0")],
)
def test_pixel_threshold_without_a_meaning_is_refused(maps, rate, words):
    with pytest.raises(ModelError, match=words):
        pixel_threshold(maps, rate)
