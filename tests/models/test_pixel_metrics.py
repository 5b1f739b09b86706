from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

from models.errors import ModelError
from models.pixel_metrics import pixel_metrics
from models.region_overlap import area_below, region_sizes


@st.composite
def maps_and_masks(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, height, width = draw(st.integers(1, 4)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    masks = rng.random((count, height, width)) < draw(st.sampled_from([0.0, 0.05, 0.3, 0.9]))
    levels = draw(st.sampled_from([1, 2, 5, 1000]))
    maps = rng.integers(0, levels, masks.shape).astype(draw(st.sampled_from([np.float32, np.float64])))
    maps += draw(st.sampled_from([0.0, 1.0])) * masks
    return maps, masks


def brute_force_overlap(maps, masks, limit):
    """Walk over every threshold, every region: the definition, with a loop where the code has cumulative sums."""
    regions = []
    for values, mask in zip(maps, masks, strict=True):
        labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [values[labels == number] for number in range(1, count + 1)]
    normal = maps[~masks]
    curve = [(0.0, 0.0)]
    for threshold in np.unique(maps)[::-1]:
        overlap = np.mean([np.mean(region >= threshold) for region in regions])
        curve.append((np.mean(normal >= threshold), overlap))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(curve):
        if x0 >= limit or x1 == x0:
            continue
        end = min(x1, limit)
        y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
        area += (end - x0) * (y0 + y_end) / 2
    return area / limit


@settings(max_examples=200, deadline=None)
@given(maps_and_masks())
def test_pixel_metrics_equal_brute_force_and_scikit_learn(case):
    maps, masks = case
    measured = pixel_metrics(maps, masks)
    assert measured.prevalence == pytest.approx(masks.mean(), abs=1e-12)
    if not masks.any():
        assert math.isnan(measured.auroc) and math.isnan(measured.aupro_30) and math.isnan(measured.average_precision)
        return
    labels, scores = masks.ravel(), maps.ravel()
    assert measured.average_precision == pytest.approx(average_precision_score(labels, scores), abs=1e-9)
    if masks.all():
        assert math.isnan(measured.auroc) and math.isnan(measured.aupro_30)
        return
    assert measured.auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
    assert measured.aupro_30 == pytest.approx(brute_force_overlap(maps, masks, 0.3), abs=1e-9)
    assert measured.aupro_05 == pytest.approx(brute_force_overlap(maps, masks, 0.05), abs=1e-9)
    assert all(0 <= value <= 1 for value in dataclasses.astuple(measured))


@given(st.integers(0, 2**32 - 1))
def test_region_sizes_count_diagonal_neighbours_as_one_region(seed):
    mask = np.random.default_rng(seed).random((8, 11)) < 0.3
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    sizes, regions = region_sizes(mask)
    assert regions == count
    assert sizes.tolist() == [int(np.sum(labels == label)) for label in labels[mask]]


def test_perfect_maps_score_one_and_never_more():
    rng = np.random.default_rng(0)
    masks = ndimage.binary_dilation(rng.random((3, 64, 64)) < 0.002, iterations=2)
    measured = pixel_metrics(masks + rng.random(masks.shape) * 0.5, masks)
    assert measured.auroc == measured.average_precision == measured.aupro_30 == measured.aupro_05 == 1.0


def test_constant_maps_score_like_a_coin():
    masks = np.zeros((2, 10, 10), bool)
    masks[0, 2:4, 2:7] = True
    measured = pixel_metrics(np.full(masks.shape, 7.0, np.float32), masks)
    assert measured.auroc == 0.5
    assert measured.average_precision == measured.prevalence == 0.05
    assert measured.aupro_30 == pytest.approx(0.15)
    assert measured.aupro_05 == pytest.approx(0.025)


def test_aupro_weighs_regions_alike_whatever_their_size():
    mask = np.zeros((20, 20), bool)
    mask[:10, :10] = True
    mask[19, 19] = True
    values = np.zeros((20, 20))
    values[:10, :10] = 1.0  # the large region found without a false positive, the single pixel not before all others
    assert pixel_metrics([values], [mask]).aupro_30 == pytest.approx(0.5 + 0.5 * 0.15, abs=1e-9)


def test_images_of_different_sizes_and_iterators_are_read_once():
    rng = np.random.default_rng(1)
    sizes = [(5, 7), (12, 3), (8, 8)]
    maps = [rng.random(size).astype(np.float32) for size in sizes]
    masks = [rng.random(size) < 0.2 for size in sizes]
    measured = pixel_metrics(iter(maps), (mask.astype(np.uint8) * 255 for mask in masks))
    joined = np.concatenate([values.ravel() for values in maps])
    assert measured.auroc == pytest.approx(roc_auc_score(np.concatenate([m.ravel() for m in masks]), joined), abs=1e-9)


def test_infinite_values_are_ranked():
    values = np.array([[np.inf, -np.inf], [0.0, 1.0]])
    assert pixel_metrics([values], [values == np.inf]).auroc == 1.0


@pytest.mark.parametrize(
    ("maps", "masks", "said"),
    [
        ([np.full((2, 2), np.nan)], [np.ones((2, 2))], "map 0 has NaN"),
        ([np.ones((2, 2))], [np.ones((2, 3))], "one size"),
        ([np.ones((2, 2))] * 2, [np.ones((2, 2))], "as many"),
        ([], [], "at least one"),
    ],
)
def test_pixel_metrics_refuse_what_has_no_meaning(maps, masks, said):
    with pytest.raises(ModelError, match=said):
        pixel_metrics(maps, masks)


def test_area_below_interpolates_at_the_limit():
    corners = np.array([0.0, 0.2, 1.0])
    assert area_below(corners, np.array([0.0, 0.4, 1.0]), 0.2) == pytest.approx(0.2)
    assert area_below(corners, np.array([0.0, 0.4, 1.0]), 0.6) == pytest.approx((0.04 + 0.4 * 0.55) / 0.6)
