from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from skimage import data, transform
from sklearn.metrics import average_precision_score, roc_auc_score

from models import scoring
from models.errors import ModelError
from models.metrics.image_metrics import average_precision
from models.scorer import IMAGE_SCORE, smooth
from models.scoring import Scoring, choose_scoring, default_candidates, fit_scorer
from models.synthesis.synthetic_defects import FAMILIES, GRADES, make_synthetic_defects

SIZE = 64


@pytest.fixture(scope="module")
def gravel():
    whole = transform.resize(data.gravel(), (256, 256), anti_aliasing=True)
    crops = [whole[y : y + SIZE, x : x + SIZE] for y in range(0, 193, 48) for x in range(0, 193, 64)]
    good = np.repeat((np.stack(crops) * 255).astype(np.uint8)[..., None], 3, axis=3)
    return good, make_synthetic_defects(good, seed=0, per_group=4)


def brightness(images_NHWC):
    return torch.from_numpy(images_NHWC).float().mean(dim=3)[:, None] / 255


def oracle(good, synthetic, noise, seed):
    """Maps of a model that sees the change itself under noise."""
    generator = torch.Generator().manual_seed(seed)
    defect = (brightness(synthetic.images) - brightness(good[synthetic.source])).abs()
    quiet = torch.zeros(len(good), 1, SIZE, SIZE)
    return tuple(clean + noise * torch.rand(clean.shape, generator=generator) for clean in (quiet, defect))


def noise_maps(good, synthetic, seed):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.rand(len(images), 1, SIZE, SIZE, generator=generator) for images in (good, synthetic.images))


def maps_of(**pairs):
    return {name: pair[0] for name, pair in pairs.items()}, {name: pair[1] for name, pair in pairs.items()}


def test_choice_takes_the_map_that_sees_the_defects(gravel):
    good, synthetic = gravel
    good_maps, defect_maps = maps_of(noise=noise_maps(good, synthetic, 0), seeing=oracle(good, synthetic, 0.03, 1))
    choice = choose_scoring(good_maps, defect_maps, synthetic)
    assert choice.scorer.scoring.map_names == ("seeing",)
    assert choice.validation.image_auroc > 0.9
    blind = choose_scoring({"noise": good_maps["noise"]}, {"noise": defect_maps["noise"]}, synthetic)
    assert blind.validation.score < 0.65 < choice.validation.score


def test_validation_score_is_the_stated_mean_over_groups(gravel):
    good, synthetic = gravel
    good_maps, defect_maps = maps_of(seeing=oracle(good, synthetic, 0.2, 1))
    scoring = Scoring({"seeing": 1.0}, smoothing=1.0, reduction="max")
    choice = choose_scoring(good_maps, defect_maps, synthetic, [scoring])
    validation = choice.validation
    assert sorted(validation.per_group) == sorted(f"{f}/{g}" for f in FAMILIES for g in GRADES)

    good_smooth, defect_smooth = (smooth(maps["seeing"], 1.0) for maps in (good_maps, defect_maps))
    for index, family in enumerate(FAMILIES):
        for grade_index, grade in enumerate(GRADES):
            member = (synthetic.family == index) & (synthetic.grade == grade_index)
            scores = torch.cat([good_smooth, defect_smooth[torch.from_numpy(member)]]).flatten(1).amax(1).numpy()
            labels = np.repeat([0, 1], [len(good), member.sum()])
            figures = validation.per_group[f"{family}/{grade}"]
            assert figures["image_auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
            # 64 × 64 pixels are all looked at, so the figure is exact.
            pixels = defect_smooth[torch.from_numpy(member)].flatten().numpy()
            expected = average_precision_score(synthetic.masks[member].ravel(), pixels)
            assert figures["pixel_ap"] == pytest.approx(expected, abs=1e-4)
    means = [np.mean([f[k] for f in validation.per_group.values()]) for k in ("image_auroc", "pixel_ap")]
    assert (validation.image_auroc, validation.pixel_ap) == pytest.approx(tuple(means))
    assert validation.score == pytest.approx(0.8 * means[0] + 0.2 * means[1])


def test_choice_is_the_best_of_all_candidates_tried_one_by_one(gravel):
    good, synthetic = gravel
    good_maps, defect_maps = maps_of(a=oracle(good, synthetic, 0.3, 1), b=oracle(good, synthetic, 0.2, 2))
    candidates = default_candidates(("a", "b"), SIZE)
    alone = [choose_scoring(good_maps, defect_maps, synthetic, [c]).validation.score for c in candidates]
    choice = choose_scoring(good_maps, defect_maps, synthetic, candidates)
    assert choice.validation.score == pytest.approx(max(alone))
    assert choice.scorer.scoring == candidates[int(np.argmax(alone))]


def test_of_equal_candidates_the_first_is_chosen(gravel):
    good, synthetic = gravel
    pair = oracle(good, synthetic, 0.0, 1)
    good_maps, defect_maps = maps_of(a=pair, b=pair)
    candidates = [Scoring({"b": 1.0}), Scoring({"a": 1.0})]
    assert choose_scoring(good_maps, defect_maps, synthetic, candidates).scorer.scoring == candidates[0]


def test_calibration_is_judged_on_images_it_was_not_fitted_on(gravel):
    """Every good image has an error of its own: fitted on itself it would vanish, cross-fitted it must not."""
    good, synthetic = gravel
    good_maps, defect_maps = maps_of(noise=noise_maps(good, synthetic, 3))
    scoring = Scoring({"noise": 1.0}, calibration="position", reduction="max")
    choice = choose_scoring(good_maps, defect_maps, synthetic, [scoring])
    assert abs(choice.validation.image_auroc - 0.5) < 0.12
    own = choice.scorer(good_maps)[1].numpy()
    assert np.median(choice.good_scores) > np.median(own)  # the honest scores are the higher ones


def test_good_scores_are_cross_fitted_and_the_scorer_sees_all_good_images(gravel):
    good, synthetic = gravel
    good_maps, defect_maps = maps_of(a=oracle(good, synthetic, 0.2, 4))
    scoring = Scoring({"a": 1.0}, 1.0, "top1", "position")
    choice = choose_scoring(good_maps, defect_maps, synthetic, [scoring])
    for fold in (0, 1):
        other = fit_scorer(scoring, {"a": good_maps["a"][1 - fold :: 2]})
        own = other({"a": good_maps["a"][fold::2]})[1].numpy()
        np.testing.assert_allclose(choice.good_scores[fold::2], own, rtol=1e-4)
    everything = fit_scorer(scoring, good_maps).state()
    assert all(torch.equal(value, everything[name]) for name, value in choice.scorer.state().items())


def test_subsampled_pixel_precision_is_close_to_the_exact_one():
    whole = transform.resize(data.brick(), (256, 256), anti_aliasing=True)
    crops = [np.roll(whole, shift, axis=(0, 1))[:192, :192] for shift in (0, 20, 40, 60)]
    good = np.repeat((np.stack(crops) * 255).astype(np.uint8)[..., None], 3, axis=3)
    synthetic = make_synthetic_defects(good, seed=0, per_group=2)
    defect = (brightness(synthetic.images) - brightness(good[synthetic.source])).abs()
    noisy = defect + 0.05 * torch.rand(defect.shape, generator=torch.Generator().manual_seed(0))
    quiet = 0.05 * torch.rand(len(good), 1, 192, 192, generator=torch.Generator().manual_seed(1))
    choice = choose_scoring({"a": quiet}, {"a": noisy}, synthetic, [Scoring({"a": 1.0})])
    exact = [
        average_precision_score(synthetic.masks[m].ravel(), noisy[torch.from_numpy(m)].numpy().ravel())
        for m in ((synthetic.family == f) & (synthetic.grade == g) for f in range(5) for g in range(3))
    ]
    assert choice.validation.pixel_ap == pytest.approx(np.mean(exact), abs=0.02)


def test_default_candidates_cover_maps_blend_smoothing_reduction_and_calibration():
    candidates = default_candidates(("l1", "ssim", "msgms"), 128)
    assert len(candidates) == len({str(c) for c in candidates}) == 4 * 3 * 3 * 2
    assert {c.smoothing for c in candidates} == {0.0, 1.0, 2.0}
    assert len(default_candidates(("l1",), 256)) == 3 * 3 * 2
    assert candidates[0] == Scoring({"l1": 1.0}, 0.0, "max", "none")


def test_choosing_refuses_maps_that_do_not_fit(gravel):
    good, synthetic = gravel
    good_maps, defect_maps = maps_of(a=oracle(good, synthetic, 0.1, 0))
    with pytest.raises(ModelError, match="no anomaly map"):
        choose_scoring({}, {}, synthetic)
    with pytest.raises(ModelError, match="no map 'a'"):
        choose_scoring(good_maps, {}, synthetic)
    with pytest.raises(ModelError, match="compute the maps on this set"):
        choose_scoring(good_maps, {"a": defect_maps["a"][1:]}, synthetic)
    with pytest.raises(ModelError, match="differs in size"):
        choose_scoring(good_maps, {"a": defect_maps["a"][..., 1:]}, synthetic)
    with pytest.raises(ModelError, match="more than the 3"):
        choose_scoring({"a": good_maps["a"][:3]}, defect_maps, synthetic)
    with pytest.raises(ModelError, match="at least 2"):
        one = dataclasses.replace(synthetic, source=np.zeros_like(synthetic.source))
        choose_scoring({"a": good_maps["a"][:1]}, defect_maps, one)
    with pytest.raises(ModelError, match="no scoring"):
        choose_scoring(good_maps, defect_maps, synthetic, [])
    broken = {"a": torch.full_like(defect_maps["a"], torch.nan)}
    with pytest.raises(ModelError, match="not finite"):
        choose_scoring(good_maps, broken, synthetic)


def test_default_candidates_offer_a_models_own_score_beside_its_map():
    candidates = default_candidates(("anomaly_map", IMAGE_SCORE), 256)
    assert {tuple(candidate.weights) for candidate in candidates} == {("anomaly_map",)}
    assert Scoring({"anomaly_map": 1.0}, reduction="own") in candidates
    alone = default_candidates((IMAGE_SCORE,), 256)
    assert {tuple(candidate.weights) for candidate in alone} == {(IMAGE_SCORE,)}
    assert all(candidate.reduction != "own" for candidate in default_candidates(("l1", "ssim"), 256))


def test_choosing_by_parts_is_choosing_by_all_maps_at_once(gravel):
    good, synthetic = gravel
    good_maps, defect_maps = maps_of(a=oracle(good, synthetic, 0.5, 0), b=oracle(good, synthetic, 1.0, 1))
    count = len(synthetic.images)
    parts = ({name: maps[i : i + 5] for name, maps in defect_maps.items()} for i in range(0, count, 5))
    whole, by_parts = choose_scoring(good_maps, defect_maps, synthetic), choose_scoring(good_maps, parts, synthetic)
    assert whole.scorer.scoring == by_parts.scorer.scoring
    np.testing.assert_allclose(whole.good_scores, by_parts.good_scores, rtol=1e-5)
    assert whole.validation.score == pytest.approx(by_parts.validation.score, abs=1e-6)
    for end in (count - 5, count + 5):
        parts = [{name: maps[torch.arange(end) % count] for name, maps in defect_maps.items()}]
        with pytest.raises(ModelError, match="compute the maps on this set"):
            choose_scoring(good_maps, parts, synthetic)


def test_average_precisions_of_rows_are_those_of_the_metric_with_ties_and_filling():
    generator = np.random.default_rng(0)
    rows = []
    for length in (40, 17, 3):
        label = generator.integers(0, 2, length)
        rows.append((generator.integers(0, 9, length) / 9, label, np.where(label, 1.0, 4.0)))
    filled = [
        np.stack([np.pad(row[part], (0, 40 - len(row[part])), constant_values=fill) for row in rows])
        for part, fill in ((0, -np.inf), (1, 0), (2, 0))
    ]
    found = scoring._average_precisions(*(torch.from_numpy(part).double() for part in filled))
    wanted = [average_precision(label, score, count) for score, label, count in rows]
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
