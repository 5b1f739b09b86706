from __future__ import annotations

import numpy as np
import pytest

from msad.models.metrics.region_overlap import area_below, region_numbers


def test_region_numbers_are_in_the_order_of_the_true_pixels_with_each_regions_size():
    mask = np.array([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]], bool)
    of_pixel, sizes = region_numbers(mask)
    assert of_pixel.tolist() == [0, 1, 0, 1, 2] and sizes.tolist() == [2, 2, 1]
    of_pixel, sizes = region_numbers(np.zeros((3, 5), bool))
    assert len(of_pixel) == len(sizes) == 0


@pytest.mark.parametrize(
    ("first", "second", "regions"), [((0, 0), (1, 1), 1), ((0, 4), (2, 0), 2), ((0, 4), (1, 0), 2)]
)
def test_region_numbers_join_corners_but_not_the_ends_of_rows(first, second, regions):
    mask = np.zeros((3, 5), bool)
    mask[first] = mask[second] = True
    assert len(region_numbers(mask)[1]) == regions


def test_area_below_interpolates_at_the_limit():
    # Of 10 normal pixels 2 lie above the first half of the defects, and 4 are tied with the second.
    step, above, at_or_above = np.array([0.5, 0.5]), np.array([4, 2]), np.array([8, 2])
    assert area_below(step, above, at_or_above, 2) == 0.0
    assert area_below(step, above, at_or_above, 4) == pytest.approx(0.5 * 2)
    assert area_below(step, above, at_or_above, 6) == pytest.approx(0.5 * 4 + 0.25 * 2 / 2)
    assert area_below(step, above, at_or_above, 10) == pytest.approx(0.5 * 8 + 0.5 * 2 + 0.5 * 4 / 2)
