"""Regions of a map: boxes, areas, scores and order by hand, against scipy's labels, and what is left out."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from msad.models.regions import count_regions, find_regions, mask_of


@pytest.fixture
def anomaly_map():
    """Three regions above 1: an L of four pixels, two pixels that touch at a corner, and a single high one."""
    values = np.zeros((6, 9), np.float32)
    values[1:4, 1] = 2.0, 4.0, 3.0
    values[3, 2] = 3.0
    values[4, 6], values[5, 7] = 5.0, 2.0
    values[0, 8] = 9.0
    values[0, 0] = 1.0  # not above the threshold
    return values


def test_regions_are_listed_largest_first_with_box_area_peak_and_mean(anomaly_map):
    found = find_regions(anomaly_map, 1.0)
    assert [one.to_dict() for one in found] == [
        {"x": 1, "y": 1, "width": 2, "height": 3, "area": 4, "peak": 4.0, "mean": 3.0},
        {"x": 6, "y": 4, "width": 2, "height": 2, "area": 2, "peak": 5.0, "mean": 3.5},
        {"x": 8, "y": 0, "width": 1, "height": 1, "area": 1, "peak": 9.0, "mean": 9.0},
    ]
    assert found[0].mask.tolist() == [[True, False], [True, False], [True, True]]
    assert (mask_of(found, anomaly_map.shape) == (anomaly_map > 1)).all()


@pytest.mark.parametrize(("smallest", "areas"), [(1, [4, 2, 1]), (2, [4, 2]), (5, [])])
def test_regions_below_the_smallest_area_are_left_out(anomaly_map, smallest, areas):
    assert [one.area for one in find_regions(anomaly_map, 1.0, smallest)] == areas


def test_regions_of_equal_area_are_listed_by_their_peak():
    assert [one.peak for one in find_regions(np.array([[2.0, 0, 5.0, 0, 3.0]]), 1.0)] == [5.0, 3.0, 2.0]


def test_regions_of_noise_are_those_of_scipy():
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(80, 120)), 2)
    labels, count = ndimage.label(noise > 0.1, np.ones((3, 3)))
    found = find_regions(noise, 0.1)
    assert len(found) == count > 20
    for one in found:
        rows, columns = slice(one.y, one.y + one.height), slice(one.x, one.x + one.width)
        number = np.unique(labels[rows, columns][one.mask]).item()
        assert ndimage.find_objects(labels)[number - 1] == (rows, columns)
        assert one.mean == pytest.approx(ndimage.mean(noise, labels, number))
        assert one.peak == ndimage.maximum(noise, labels, number)
        assert one.area == (labels == number).sum()


def test_map_without_a_region_has_none():
    assert find_regions(np.zeros((4, 4)), 0.0) == [] and not mask_of([], (4, 4)).any()
    assert count_regions(np.zeros((4, 4)), 0.0) == 1  # reached, not passed
