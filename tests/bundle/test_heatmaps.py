"""Heatmaps: one scale anchored at the threshold, good pixels untouched."""

from __future__ import annotations

import numpy as np
import pytest

from msad.bundle.heatmaps import OUTLINE, edge
from msad.bundle.heatmaps import overlay as overlay_regions
from msad.bundle.map_scale import LEAST_ANCHOR, anchor
from msad.models.regions import find_regions


def overlay(image, anomaly_map, threshold, pixel_threshold=10.0, smallest_area=1):
    return overlay_regions(image, anomaly_map, threshold, find_regions(anomaly_map, pixel_threshold, smallest_area))


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def test_overlay_of_a_typical_map_is_the_image_itself(image):
    assert np.array_equal(overlay(image, np.full((60, 80), 4.9, np.float32), threshold=10.0), image)
    assert np.array_equal(overlay(image, np.full((60, 80), -30.0, np.float32), threshold=10.0), image)


def test_overlay_colours_and_outlines_only_what_is_above_the_threshold(image):
    anomaly_map = np.zeros((60, 80), np.float32)
    anomaly_map[20:40, 30:50] = 12.0
    changed = (overlay(image, anomaly_map, threshold=10.0) != image).any(axis=2)
    assert changed[20:40, 30:50].all() and changed.sum() == 400
    outline = (overlay(image, anomaly_map, threshold=10.0) == OUTLINE).all(axis=2)
    assert outline[20, 30:50].all() and not outline[25:35, 35:45].any()


@pytest.mark.parametrize(
    ("pixel_threshold", "smallest_area", "outlined"), [(5.0, 1, True), (5.0, 401, False), (13.0, 1, False)]
)
def test_overlay_outlines_the_regions_it_is_given_whatever_the_colours(image, pixel_threshold, smallest_area, outlined):
    anomaly_map = np.zeros((60, 80), np.float32)
    anomaly_map[20:40, 30:50] = 12.0
    picture = overlay(image, anomaly_map, 10.0, pixel_threshold, smallest_area)
    assert (picture[20, 30:50] == OUTLINE).all() == outlined


def test_overlay_darkens_what_is_outside_of_the_region_of_interest(image):
    anomaly_map = np.full((60, 80), 12.0, np.float32)
    roi = np.zeros((30, 40), bool)  # at another size, as the model has it
    roi[:, 10:] = True
    picture = overlay_regions(image, anomaly_map, 10.0, [], roi)
    assert np.array_equal(picture[:, :20], image[:, :20] // 3)
    assert np.array_equal(picture[:, 20:], overlay_regions(image, anomaly_map, 10.0, [])[:, 20:])


def test_overlay_saturates_at_twice_the_threshold(image):
    at_the_end, beyond = (overlay(image, np.full((60, 80), value), 10.0) for value in (20.0, 9e9))
    assert np.array_equal(at_the_end, beyond)


def test_overlay_brightens_with_the_map(image):
    black = np.zeros_like(image)
    light = [overlay(black, np.full((60, 80), value), 10.0)[30, 40].sum() for value in (4, 8, 12, 16, 20)]
    assert light == sorted(light) and len(set(light)) == 5


def test_anchor_is_at_least_three_deviations():
    assert anchor(7.5) == 7.5
    assert anchor(0.01) == anchor(-4.0) == LEAST_ANCHOR


def test_edge_is_inside_the_region_and_open_at_the_images_border():
    region = np.zeros((50, 50), bool)
    region[:20, 10:30] = True
    marked = edge(region)
    assert not (marked & ~region).any()
    assert marked[19, 10:30].all() and marked[:20, 10].all() and not marked[0, 11:29].any()


def test_overlay_of_a_large_image_is_that_of_its_parts():
    rng = np.random.default_rng(0)
    image, anomaly_map = rng.integers(0, 256, (700, 900, 3), dtype=np.uint8), np.zeros((700, 900), np.float32)
    anomaly_map[:] = np.linspace(0, 9.9, 900)  # nothing above the threshold: an outline would differ at the cuts
    parts = [overlay(image[rows], anomaly_map[rows], 10.0) for rows in (slice(100), slice(100, 700))]
    assert np.array_equal(overlay(image, anomaly_map, 10.0), np.concatenate(parts))
