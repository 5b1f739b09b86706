"""What lies outside of a region of interest is not scored, standardised, judged, drawn on or remembered."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from msad.models.errors import ModelError
from msad.models.metrics.pixel_metrics import grouped_pixel_metrics, pixel_metrics
from msad.models.registry import build
from msad.models.roi import Roi
from msad.models.scorer import CALIBRATIONS, REDUCTIONS, Scorer, Scoring, fit_scorer, reduce
from msad.models.scoring import choose_scoring, default_candidates
from msad.models.synthesis.corruptions import CorruptionConfig, Corruptor
from msad.models.synthesis.synthetic_defects import make_synthetic_defects
from msad.models.thresholds import LeaveOneOut

SIZE = (48, 40)


def region(size=SIZE):
    inside = torch.zeros(1, *size, dtype=torch.bool)
    inside[:, 8:30, 10:35] = True
    return Roi(inside)


def maps_of(count, seed):
    return {name: torch.rand(count, 1, *SIZE, generator=torch.Generator().manual_seed(seed)) for name in ("a", "b")}


def spoilt(maps, roi):
    """The same maps with something else outside."""
    return {name: torch.where(roi.inside_1HW, one, 100 + 50 * torch.rand_like(one)) for name, one in maps.items()}


@pytest.mark.parametrize("calibration", CALIBRATIONS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 2.0])
def test_scores_and_map_inside_depend_on_what_is_inside_alone(calibration, reduction, smoothing):
    roi, good, seen = region(), maps_of(12, 0), maps_of(5, 1)
    scoring = Scoring({"a": 1.0, "b": 2.0}, smoothing, reduction, calibration)
    map_B1HW, score_B = fit_scorer(scoring, good, roi)(seen)
    again_B1HW, again_B = fit_scorer(scoring, spoilt(good, roi), roi)(spoilt(seen, roi))
    torch.testing.assert_close(score_B, again_B, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(roi.pixels(map_B1HW), roi.pixels(again_B1HW), atol=1e-4, rtol=1e-4)
    outside_BP = map_B1HW[:, ~roi.inside_1HW]
    assert torch.equal(outside_BP, roi.pixels(map_B1HW).amin(dim=1, keepdim=True).expand_as(outside_BP))


def test_statistics_are_those_of_the_region_cut_out():
    roi, good = region(), maps_of(12, 0)
    cut = {name: one[..., 8:30, 10:35] for name, one in good.items()}
    scoring = Scoring({"a": 1.0}, 2.0, "top1")
    whole, part = fit_scorer(scoring, good, roi), fit_scorer(scoring, cut)
    assert whole.statistics["a"].mean.item() == pytest.approx(part.statistics["a"].mean.item(), abs=0.01)
    map_B1HW = torch.arange(48 * 40.0).view(1, 1, *SIZE)
    for reduction in REDUCTIONS:
        assert reduce(map_B1HW, reduction, roi) == reduce(map_B1HW[..., 8:30, 10:35], reduction)


def test_scorer_with_a_region_comes_back_from_its_state():
    roi, good = region(), maps_of(12, 0)
    scorer = fit_scorer(Scoring({"a": 1.0}, 1.0, "top1", "position"), good, roi)
    back = Scorer.from_state(scorer.scoring, scorer.state())
    for one, other in zip(scorer(good), back(good), strict=True):
        assert torch.equal(one, other)
    assert back.roi.share == roi.share == 22 * 25 / (48 * 40)
    with pytest.raises(ModelError, match="bool 1×H×W with a pixel inside"):
        Scorer.from_state(scorer.scoring, {**scorer.state(), "roi": torch.zeros(1, 4, 4, dtype=torch.bool)})


def test_threshold_is_set_by_what_is_inside_alone():
    roi, good = region(), maps_of(8, 0)
    scoring = Scoring({"a": 1.0, "b": 1.0}, 1.0, "max", "position")
    first = LeaveOneOut(scoring, good, roi).good_scores()
    np.testing.assert_allclose(first, LeaveOneOut(scoring, spoilt(good, roi), roi).good_scores(), atol=1e-3)
    others = {name: torch.cat([one[:2], one[3:]]) for name, one in good.items()}
    third = {name: one[2:3] for name, one in good.items()}
    assert fit_scorer(scoring, others, roi)(third)[1].item() == pytest.approx(first[2], abs=1e-4)


@pytest.fixture(scope="module")
def parts():
    """Noisy grey images, and synthetic defects in a region of them."""
    rng = np.random.default_rng(0)
    images = (120 + 25 * rng.standard_normal((12, *SIZE, 1))).clip(0, 255).astype(np.uint8).repeat(3, axis=3)
    return images, make_synthetic_defects(images, 0, per_group=2, roi_HW=region().inside_1HW[0].numpy())


def test_scoring_is_chosen_by_what_is_inside_alone(parts):
    _, synthetic = parts
    roi, good = region(), maps_of(12, 0)
    defects = maps_of(len(synthetic.images), 1)
    defects["b"] = defects["b"] + 0.6 * torch.from_numpy(synthetic.masks)[:, None]
    candidates = [one for one in default_candidates(("a", "b"), 40) if one.smoothing < 1]
    first = choose_scoring(good, defects, synthetic, candidates, roi=roi)
    second = choose_scoring(spoilt(good, roi), spoilt(defects, roi), synthetic, candidates, roi=roi)
    assert first.scorer.scoring == second.scorer.scoring and first.scorer.scoring.map_names == ("b",)
    assert first.scorer.roi is roi
    assert first.validation.image_auroc == pytest.approx(second.validation.image_auroc)
    assert first.validation.pixel_ap == pytest.approx(second.validation.pixel_ap, abs=1e-6)


def test_synthetic_defects_lie_inside_and_are_those_of_the_whole_without_a_region(parts):
    images, synthetic = parts
    outside = ~region().inside_1HW[0].numpy()
    assert not synthetic.masks[:, outside].any() and synthetic.masks.reshape(len(synthetic.masks), -1).any(axis=1).all()
    assert np.array_equal(synthetic.images[:, outside], images[synthetic.source][:, outside])
    whole = make_synthetic_defects(images, 0, per_group=2)
    everywhere = make_synthetic_defects(images, 0, per_group=2, roi_HW=np.ones(SIZE, bool))
    for name, values in dataclasses.asdict(whole).items():
        assert np.array_equal(values, getattr(everywhere, name)), name


def test_synthetic_defects_reach_a_region_along_the_border(parts):
    images, _ = parts
    strip = np.zeros(SIZE, bool)
    strip[:, :3] = True
    synthetic = make_synthetic_defects(images, 0, per_group=2, roi_HW=strip)
    assert synthetic.masks.any(axis=(1, 2)).all() and not synthetic.masks[:, ~strip].any()


@pytest.mark.parametrize("background", [False, True])
def test_corruption_lies_inside(background):
    clean_BCHW = torch.full((32, 3, 64, 64), 0.9)
    clean_BCHW[:, :, 20:44, 16:48] = torch.rand(32, 3, 24, 32, generator=torch.Generator().manual_seed(0)) / 2
    good = (clean_BCHW.permute(0, 2, 3, 1).numpy() * 255).astype(np.uint8) if background else None
    corrupt = Corruptor(CorruptionConfig(probability=1.0), good=good)
    inside_B1HW = torch.zeros(32, 1, 64, 64)
    inside_B1HW[:, :, 30:60, 30:60] = 1
    corrupted_BCHW, mask_B1HW = corrupt(clean_BCHW, torch.Generator().manual_seed(1), inside_B1HW)
    outside = (inside_B1HW == 0).expand_as(clean_BCHW)
    assert torch.equal(corrupted_BCHW[outside], clean_BCHW[outside]) and not mask_B1HW[inside_B1HW == 0].any()
    assert mask_B1HW.flatten(1).any(dim=1).float().mean() > 0.8


def test_pixel_metrics_inside_are_those_of_the_part_cut_out():
    rng = np.random.default_rng(0)
    maps = rng.random((6, *SIZE)).astype(np.float32)
    masks = rng.random((6, *SIZE)) > 0.97
    masks[:2] = False
    inside = region().inside_1HW[0].numpy()
    groups = [None, None, "x", "x", "y", "y"]
    found = grouped_pixel_metrics(maps, masks, groups, [inside] * 6)
    assert found == grouped_pixel_metrics(maps[:, 8:30, 10:35], masks[:, 8:30, 10:35], groups)
    assert found[0] != pixel_metrics(maps, masks)
    with pytest.raises(ModelError, match="what counts of it"):
        grouped_pixel_metrics(maps, masks, groups, [inside[:4]] * 6)


@pytest.fixture(scope="module")
def halves():
    """Images that are dark on the left, inside, and bright on the right; which share of each place is inside."""
    images = torch.rand(4, 3, 128, 128, generator=torch.Generator().manual_seed(0)) / 4
    images[..., 64:] += 0.7
    share = torch.zeros(4, 1, 16, 16)
    share[..., :6] = 1
    return images, share


def test_memory_does_not_know_what_is_outside(halves):
    images, share = halves
    shown = images.clone()
    shown[..., :48] = images[..., 80:]
    ratios = {}
    for name, inside in (("all", None), ("inside", [share])):
        model = build("feature_memory", rows=200, light="kept", pose="kept", neighbourhood=1, coarsest_stride=8).eval()
        model.adapt_inside([model.encode(images)], inside)
        found, usual = (model.anomaly_maps(one)["memory"][..., 32:96, 16:32].mean() for one in (shown, images))
        ratios[name] = float(found / usual)
    assert ratios["all"] < 1.1 < 1.4 < ratios["inside"]


def test_features_are_standardised_by_what_is_inside(halves):
    images, share = halves
    model = build("feature_pyramid", width=8, bottleneck_channels=4)
    features = model.encode(images)
    model.adapt_inside([features], [share.repeat_interleave(2, 2).repeat_interleave(2, 3)])
    for stage, wide in enumerate((12, 6, 3)):
        inside = features[stage][..., :wide]
        for name, expected in (
            ("mean", inside.mean(dim=(0, 2, 3))),
            ("scale", inside.std(dim=(0, 2, 3), correction=0)),
        ):
            torch.testing.assert_close(getattr(model, f"{name}{stage}").flatten(), expected, atol=2e-3, rtol=1e-3)


def test_region_that_no_training_image_shows_is_refused():
    model = build("feature_memory", rows=40)
    with pytest.raises(ModelError, match="no training image shows the region of interest"):
        model.adapt_inside([model.encode(torch.rand(1, 3, 64, 64))], [torch.zeros(1, 1, 8, 8)])
