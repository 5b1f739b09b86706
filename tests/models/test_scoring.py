from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from skimage import data, transform
from sklearn.metrics import average_precision_score, roc_auc_score

from msad.models import judge
from msad.models.errors import ModelError
from msad.models.metrics.image_metrics import average_precision, image_auroc
from msad.models.scorer import IMAGE_SCORE
from msad.models.scoring import Reading, Scoring, ValidationScore, choose_scoring, default_candidates, fit_scorer
from msad.models.smoothing import smooth
from msad.models.synthesis.synthetic_defects import FAMILIES, GRADES, make_synthetic_defects
from tests.models.noise_set import noise_set

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
    assert choice.validation.score > 0.75


def test_fused_scores_of_one_map_are_judged_as_that_map_and_noise_beside_it_costs_less_than_in_a_blend(gravel):
    good, synthetic = gravel
    spikes = tuple(map_B1HW**30 for map_B1HW in noise_maps(good, synthetic, 0))
    good_maps, defect_maps = maps_of(noise=spikes, seeing=oracle(good, synthetic, 0.03, 1))

    def auroc(weights, fusion):
        scoring = Scoring(weights, reduction="top1", fusion=fusion)
        return choose_scoring(good_maps, defect_maps, synthetic, [scoring]).validation.image_auroc

    alone = auroc({"seeing": 1.0}, "maps")
    assert auroc({"seeing": 1.0}, "scores") == alone
    both = {"seeing": 2.0, "noise": 1.0}
    assert auroc(both, "maps") + 0.05 < auroc(both, "scores") <= auroc(both, "excesses") < alone + 0.01


def blind_choice(count, maps, seed):
    """A model of pure noise."""
    synthetic = noise_set(count, np.random.default_rng([count, maps, seed]))
    generator = torch.Generator().manual_seed(1000 * count + 10 * maps + seed)
    good, defects = (
        {f"map {n}": torch.randn(number, 1, 24, 24, generator=generator) for n in range(maps)}
        for number in (count, len(synthetic.masks))
    )
    return choose_scoring(good, defects, synthetic)


def test_noise_gets_the_score_of_guessing_however_many_images_and_candidates():
    """Read on the images that it was chosen on, the best of 18, 72 and 90 scorings of noise had 0.62 to 0.64."""
    found = {
        (maps, count): [blind_choice(count, maps, seed).validation for seed in range(5)]
        for maps in (1, 3, 4)
        for count in (10, 20, 31)
    }
    every = [one for of_same in found.values() for one in of_same]
    aurocs, scores = (np.array([getattr(one, name) for one in every]) for name in ("image_auroc", "score"))
    error = aurocs.std(ddof=1) / len(aurocs) ** 0.5
    assert error < 0.02
    assert abs(aurocs.mean() - 0.5) < 2.5 * error
    for maps in (1, 3, 4):  # a third of them each
        some = [one.image_auroc for key, of_same in found.items() if key[0] == maps for one in of_same]
        assert abs(np.mean(some) - 0.5) < 2.5 * 3**0.5 * error
    chance = np.mean([one.chance for one in every])
    assert chance == pytest.approx(0.4 + 0.2 * np.mean([one.pixel_chance for one in every]))
    # Few pixels make the average precision of guessing a little more than the share of defective ones.
    assert abs(scores.mean() - chance) < 2.5 * 0.8 * error + 0.01


def test_chance_is_what_a_map_that_knows_nothing_gets(gravel):
    good, synthetic = gravel
    flat = [{"flat": torch.ones(len(images), 1, SIZE, SIZE)} for images in (good, synthetic.images)]
    validation = choose_scoring(*flat, synthetic).validation
    assert validation.score == pytest.approx(validation.chance, abs=1e-3)
    assert validation.image_auroc == pytest.approx(0.5)
    assert validation.pixel_ap == pytest.approx(validation.pixel_chance, abs=2e-3)  # smoothing rounds
    assert validation.pixel_chance == pytest.approx(synthetic.masks.mean(), rel=0.2)  # but for the weights of groups


def test_validation_score_is_the_stated_mean_over_groups(gravel):
    good, synthetic = gravel
    good_maps, defect_maps = maps_of(seeing=oracle(good, synthetic, 0.2, 1))
    scoring = Scoring({"seeing": 1.0}, smoothing=1.0, reduction="max")
    choice = choose_scoring(good_maps, defect_maps, synthetic, [scoring])
    validation = choice.validation
    assert sorted(validation.per_group) == sorted(f"{f}/{g}" for f in FAMILIES for g in GRADES)

    good_smooth, defect_smooth = (smooth(maps["seeing"], 1.0) for maps in (good_maps, defect_maps))
    halves = []
    for half in (0, 1):
        figures, weights = [], []
        for family in range(len(FAMILIES)):
            for grade in range(len(GRADES)):
                member = (synthetic.family == family) & (synthetic.grade == grade) & (synthetic.source % 2 == half)
                shown, quiet = defect_smooth[torch.from_numpy(member)], good_smooth[half::2]
                scores = torch.cat([quiet, shown]).flatten(1).amax(1).numpy()
                auroc = roc_auc_score(np.repeat([0, 1], [len(quiet), len(shown)]), scores)
                # 64 × 64 pixels are all looked at, so the figure is exact.
                precision = average_precision_score(synthetic.masks[member].ravel(), shown.flatten().numpy())
                figures.append((auroc, precision))
                weights.append(min(1, len(shown) / 2))
        halves.append(np.average(figures, axis=0, weights=weights))
    auroc, precision = np.mean(halves, axis=0)
    assert validation.image_auroc == pytest.approx(auroc, abs=1e-6)
    assert validation.pixel_ap == pytest.approx(precision, abs=1e-4)
    assert validation.score == pytest.approx(0.8 * validation.image_auroc + 0.2 * validation.pixel_ap)


def test_choice_on_each_half_is_read_on_the_other(gravel):
    """Two maps, each of which sees the defects of one half only: what a half chooses is worth nothing on the other."""
    good, synthetic = gravel
    (good_seen, seen), (_, hidden) = oracle(good, synthetic, 0.03, 1), noise_maps(good, synthetic, 2)
    on_odd = torch.from_numpy(synthetic.source % 2 == 1).view(-1, 1, 1, 1)
    defect_maps = {"even": torch.where(on_odd, 0.03 * hidden, seen), "odd": torch.where(on_odd, seen, 0.03 * hidden)}
    candidates = [Scoring({name: 1.0}) for name in defect_maps]
    choice = choose_scoring({"even": good_seen, "odd": good_seen}, defect_maps, synthetic, candidates)
    assert min(reading.value for reading in choice.readings) > 0.8
    assert choice.validation.image_auroc < 0.6


@pytest.mark.parametrize(
    ("objective", "chosen"), [("validation_image_auroc", "images"), ("validation_pixel_ap", "pixels")]
)
def test_choice_maximises_the_objective(gravel, objective, chosen):
    good, synthetic = gravel
    quiet, seen = oracle(good, synthetic, 0.1, 1)
    # One map tells the images apart without any place, the other the places and takes good images for the worse ones.
    maps = maps_of(images=(torch.zeros_like(quiet), torch.ones_like(seen)), pixels=(quiet + 1, seen))
    candidates = [Scoring({name: 1.0}, reduction="mean") for name in ("images", "pixels")]
    choice = choose_scoring(*maps, synthetic, candidates, objective)
    assert choice.scorer.scoring.map_names == (chosen,)


def test_validation_score_of_families_that_became_one_counts_it_once(gravel):
    """All but scratches drawn as `fade`, which this map does not see: a half of the score, not five sixths."""
    good, synthetic = gravel
    family = np.where(synthetic.family == FAMILIES.index("scratch"), synthetic.family, FAMILIES.index("fade"))
    drawn = dataclasses.replace(synthetic, family=family)
    scratch = torch.from_numpy(family == FAMILIES.index("scratch")).view(-1, 1, 1, 1)
    maps = maps_of(a=(torch.zeros(len(good), 1, SIZE, SIZE), scratch.float().expand(-1, 1, SIZE, SIZE)))
    validation = choose_scoring(*maps, drawn, [Scoring({"a": 1.0})]).validation
    assert set(validation.per_group) == {f"{name}/{grade}" for name in ("scratch", "fade") for grade in GRADES}
    assert validation.per_group["fade/plain"]["images"] == 20
    assert validation.image_auroc == pytest.approx(0.75)  # 1 for scratches, 0.5 for what is not seen


def test_a_family_of_which_little_could_be_drawn_counts_little(gravel):
    good, synthetic = gravel
    warps = np.flatnonzero(synthetic.family == FAMILIES.index("warp"))
    drawn = dataclasses.replace(synthetic, family=synthetic.family.copy())
    drawn.family[warps[1:]] = FAMILIES.index("fade")  # one faint warp is left of twelve
    warp = torch.from_numpy(drawn.family == FAMILIES.index("warp")).view(-1, 1, 1, 1)
    maps = maps_of(a=(torch.zeros(len(good), 1, SIZE, SIZE), warp.float().expand(-1, 1, SIZE, SIZE)))
    readings = choose_scoring(*maps, drawn, [Scoring({"a": 1.0})]).readings
    (one,) = [reading.per_group["warp/faint"] for reading in readings if "warp/faint" in reading.per_group]
    assert one["images"] == 1 and one["weight"] == pytest.approx(0.5 / 15.5)


def test_choice_is_the_best_of_all_candidates_tried_one_by_one(gravel):
    good, synthetic = gravel
    good_maps, defect_maps = maps_of(a=oracle(good, synthetic, 0.3, 1), b=oracle(good, synthetic, 0.2, 2))
    candidates = default_candidates(("a", "b"), SIZE)
    # Of one candidate alone nothing is chosen: it is read on both halves, and each half's value is that of the half.
    alone = [choose_scoring(good_maps, defect_maps, synthetic, [c]) for c in candidates]
    choice = choose_scoring(good_maps, defect_maps, synthetic, candidates)
    assert choice.scorer.scoring == candidates[int(np.argmax([one.validation.score for one in alone]))]
    for half in (0, 1):
        values = [one.readings[half].value for one in alone]
        assert choice.readings[half].value == pytest.approx(max(values))
        assert choice.readings[half].per_group == alone[int(np.argmax(values))].readings[half].per_group


def test_map_that_takes_changed_good_images_for_defects_loses(gravel):
    good, synthetic = gravel
    seeing, fooled = oracle(good, synthetic, 0.3, 1), oracle(good, synthetic, 0.2, 2)
    good_maps, defect_maps = maps_of(seeing=seeing, fooled=fooled)
    candidates = [Scoring({"seeing": 1.0}), Scoring({"fooled": 1.0})]
    changed = {"seeing": good_maps["seeing"], "fooled": good_maps["fooled"] + 1}
    before = choose_scoring(good_maps, defect_maps, synthetic, candidates)
    after = choose_scoring(good_maps, defect_maps, synthetic, candidates, changed_maps=changed)
    assert before.scorer.scoring == candidates[1] and after.scorer.scoring == candidates[0]
    alone = choose_scoring(good_maps, defect_maps, synthetic, candidates[:1])
    assert after.validation.image_auroc == pytest.approx(alone.validation.image_auroc)


@pytest.mark.parametrize("calibration", ["none", "position"])
def test_changed_images_are_in_the_half_of_those_they_were_made_of(gravel, calibration):
    """As if each half had its images twice, though of an odd number the copies begin at an odd position."""
    good, synthetic = gravel
    kept = synthetic.source < 15
    drawn = dataclasses.replace(synthetic, **{name: part[kept] for name, part in vars(synthetic).items()})
    good_maps, defect_maps = maps_of(a=oracle(good[:15], drawn, 0.3, 1))
    scoring = [Scoring({"a": 1.0}, 1.0, "top1", calibration)]
    once = choose_scoring(good_maps, defect_maps, drawn, scoring).validation
    twice = choose_scoring(good_maps, defect_maps, drawn, scoring, changed_maps=good_maps).validation
    assert twice.image_auroc == pytest.approx(once.image_auroc, abs=1e-6)
    assert twice.pixel_ap == pytest.approx(once.pixel_ap, abs=1e-4)


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


def test_each_half_is_calibrated_by_the_other_and_the_scorer_by_all_good_images(gravel):
    good, synthetic = gravel
    good_maps, defect_maps = maps_of(a=oracle(good, synthetic, 0.2, 4))
    scoring = Scoring({"a": 1.0}, 1.0, "top1", "position")
    choice = choose_scoring(good_maps, defect_maps, synthetic, [scoring])
    for half in (0, 1):
        other = fit_scorer(scoring, {"a": good_maps["a"][1 - half :: 2]})
        quiet = other({"a": good_maps["a"][half::2]})[1].numpy()
        for name, figures in choice.readings[1 - half].per_group.items():
            family, grade = name.split("/")
            member = (synthetic.family == FAMILIES.index(family)) & (synthetic.grade == GRADES.index(grade))
            shown = other({"a": defect_maps["a"][torch.from_numpy(member & (synthetic.source % 2 == half))]})[1].numpy()
            labels = np.repeat([0, 1], [len(quiet), len(shown)])
            assert figures["image_auroc"] == pytest.approx(image_auroc(labels, np.append(quiet, shown)), abs=1e-6)
    everything = fit_scorer(scoring, good_maps).state()
    assert all(torch.equal(value, everything[name]) for name, value in choice.scorer.state().items())


def test_validation_score_of_readings_is_their_mean():
    def reading(auroc, **groups):
        figures = {"image_auroc": auroc, "pixel_ap": 0.5, "prevalence": 0.1}
        return Reading(0.9, {name: figures | {"images": 3, "weight": weight} for name, weight in groups.items()})

    validation = ValidationScore.of([reading(1.0, a=0.5, b=0.5), reading(0.6, a=1.0)])
    assert validation.image_auroc == pytest.approx(0.8) and validation.score == pytest.approx(0.8 * 0.8 + 0.2 * 0.5)
    assert validation.chance == pytest.approx(0.42)
    assert validation.per_group["a"] == {"image_auroc": pytest.approx(0.8), "pixel_ap": 0.5, "images": 6}


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
        for m in (
            (synthetic.family == f) & (synthetic.grade == g) & (synthetic.source % 2 == half)
            for f in range(len(FAMILIES))
            for g in range(len(GRADES))
            for half in (0, 1)
        )
        if m.any()
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
    with pytest.raises(ModelError, match="at an odd position"):
        choose_scoring(good_maps, defect_maps, one)
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
    found = judge._average_precisions(*(torch.from_numpy(part).double() for part in filled))
    wanted = [average_precision(label, score, count) for score, label, count in rows]
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
