from __future__ import annotations

import dataclasses
import itertools
import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

from msad.models.errors import ModelError
from msad.models.metrics.pixel_metrics import grouped_pixel_metrics, pixel_metrics


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


@settings(max_examples=100, deadline=None)
@given(maps_and_masks(), st.integers(0, 2**32 - 1))
def test_grouped_pixel_metrics_equal_those_of_each_group_with_the_images_without_one(case, seed):
    maps, masks = case
    groups = np.random.default_rng(seed).choice([None, "crack", "stain"], len(maps)).tolist()
    overall, by_group = grouped_pixel_metrics(maps, masks, groups)
    assert_same(overall, pixel_metrics(maps, masks))
    assert list(by_group) == [name for name in dict.fromkeys(groups) if name]
    for name, measured in by_group.items():
        chosen = [group in (name, None) for group in groups]
        assert_same(measured, pixel_metrics(maps[chosen], masks[chosen]))


def assert_same(measured, expected):
    assert dataclasses.astuple(measured) == pytest.approx(dataclasses.astuple(expected), abs=1e-12, nan_ok=True)


def test_grouped_pixel_metrics_of_a_group_without_a_defect_or_with_constant_maps():
    values = np.stack([np.zeros((4, 5)), np.arange(20.0).reshape(4, 5), np.full((4, 5), 0.0)])
    masks = np.zeros(values.shape, bool)
    masks[2, 0, :2] = True
    overall, by_group = grouped_pixel_metrics(values, masks, [None, "whole", "constant"])
    assert math.isnan(by_group["whole"].auroc) and math.isnan(by_group["whole"].aupro_05)
    assert by_group["whole"].prevalence == 0.0
    assert by_group["constant"].auroc == 0.5 and by_group["constant"].aupro_30 == pytest.approx(0.15)
    assert by_group["constant"].average_precision == by_group["constant"].prevalence == 0.05
    assert overall.auroc < 0.5


def test_grouped_pixel_metrics_of_a_group_without_a_normal_pixel_know_only_the_precision():
    _, by_group = grouped_pixel_metrics(np.ones((1, 3, 3)), np.ones((1, 3, 3)), ["all"])
    assert by_group["all"].average_precision == by_group["all"].prevalence == 1.0
    assert math.isnan(by_group["all"].auroc) and math.isnan(by_group["all"].aupro_30)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_pixel_metrics_are_the_same_on_any_number_of_threads(threads):
    rng = np.random.default_rng(2)
    masks = ndimage.binary_dilation(rng.random((12, 40, 40)) < 0.003, iterations=3)
    maps = (rng.integers(0, 50, masks.shape) + 20 * masks).astype(np.float32)
    groups = [None, "a", "b"] * 4
    expected, before = grouped_pixel_metrics(maps, masks, groups), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert grouped_pixel_metrics(maps, masks, groups) == expected
    finally:
        torch.set_num_threads(before)


def test_pixel_metrics_of_streamed_images_need_little_more_memory_than_the_scores():
    count, side = 48, 512
    rng = np.random.default_rng(0)
    mask = np.zeros((side, side), bool)
    mask[100:140, 200:240] = True
    masks = (mask if index % 2 else np.zeros_like(mask) for index in range(count))
    maps = (rng.random((side, side), dtype=np.float32) for _ in range(count))
    tracemalloc.start()
    try:
        grouped_pixel_metrics(maps, masks, [None, "a"] * (count // 2))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * 4 * count * side**2


def test_perfect_maps_score_one_and_never_more():
    rng = np.random.default_rng(0)
    masks = ndimage.binary_dilation(rng.random((3, 64, 64)) < 0.002, iterations=2)
    measured = pixel_metrics(masks + rng.random(masks.shape) * 0.5, masks)
    assert measured.auroc == measured.average_precision == 1.0
    assert 1 - 1e-12 < min(measured.aupro_30, measured.aupro_05) <= max(measured.aupro_30, measured.aupro_05) <= 1.0


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


def test_negative_values_and_both_zeros_are_ranked_as_numbers():
    values = np.array([[-0.0, 0.0, -1.5], [0.0, 2.0, -3.0]], np.float32)
    mask = np.array([[1, 0, 0], [1, 1, 0]], bool)
    for dtype in (np.float32, np.float64):
        measured = pixel_metrics([values.astype(dtype)], [mask])
        assert measured.auroc == pytest.approx(roc_auc_score(mask.ravel(), values.ravel()), abs=1e-12)
        assert measured.average_precision == pytest.approx(average_precision_score(mask.ravel(), values.ravel()))


def test_infinite_values_are_ranked():
    values = np.array([[np.inf, -np.inf], [0.0, 1.0]])
    assert pixel_metrics([values], [values == np.inf]).auroc == 1.0


@pytest.mark.parametrize(
    ("maps", "masks", "said"),
    [
        ([np.full((2, 2), np.nan)], [np.ones((2, 2))], "map 0 has NaN"),
        ([np.ones((2, 2))], [np.ones((2, 3))], "one size"),
        ([np.ones((2, 2))] * 2, [np.ones((2, 2))], "as many"),
        ([np.ones((0, 2))], [np.ones((0, 2))], "one size"),
        ([], [], "at least one"),
    ],
)
def test_pixel_metrics_refuse_what_has_no_meaning(maps, masks, said):
    with pytest.raises(ModelError, match=said):
        pixel_metrics(maps, masks)


def test_grouped_pixel_metrics_refuse_another_number_of_groups():
    with pytest.raises(ModelError, match="as many"):
        grouped_pixel_metrics(np.ones((2, 3, 3)), np.zeros((2, 3, 3)), ["a"])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_aupro_is_anomalibs_within_its_single_precision(seed):
    """Anomalib adds up shares of pixels in float32 and joins the corners of the curve, as we do, by straight lines."""
    aupro = pytest.importorskip(
        "anomalib.metrics.aupro", reason="anomalib is not installed: pip install '.[benchmarks]'"
    )
    rng = np.random.default_rng(seed)
    masks = ndimage.binary_dilation(rng.random((4, 48, 48)) < 0.003, iterations=2)
    masks[0, 3:9, 3:9] = True
    maps = rng.random(masks.shape, dtype=np.float32) + rng.random(dtype=np.float32) * masks
    measured = pixel_metrics(maps, masks)
    for limit, ours in ((0.3, measured.aupro_30), (0.05, measured.aupro_05)):
        metric = aupro._AUPRO(fpr_limit=limit)
        metric.update(torch.from_numpy(maps), torch.from_numpy(masks).int())
        assert ours == pytest.approx(float(metric.compute()), abs=1e-5)
