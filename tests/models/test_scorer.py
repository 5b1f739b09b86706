from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from msad.models.errors import ModelError
from msad.models.scorer import BLENDS, IMAGE_SCORE, REDUCTIONS, Scorer, Scoring, fit_scorer, reduce


def good_maps(count=12, size=(32, 40), seed=0):
    generator = torch.Generator().manual_seed(seed)
    ramp = torch.linspace(0.5, 4, size[1])  # the model errs more on the right side
    return {
        name: torch.rand(count, 1, *size, generator=generator) * ramp * scale for name, scale in [("a", 1), ("b", 50)]
    }


def test_reductions_are_highest_mean_and_top_percent():
    map_B1HW = torch.randperm(2000).reshape(1, 1, 40, 50).float()
    assert reduce(map_B1HW, "max").item() == 1999
    assert reduce(map_B1HW, "mean").item() == pytest.approx(999.5)
    assert reduce(map_B1HW, "top1").item() == pytest.approx(np.mean(range(1980, 2000)))
    assert reduce(torch.tensor([[[[1.0, 3.0]]]]), "top1").item() == 3  # never fewer than one pixel


def test_blend_gives_maps_of_different_scale_the_same_say():
    maps = good_maps()
    blended, _ = fit_scorer(Scoring({"a": 1, "b": 1}), maps)(maps)
    alone = [fit_scorer(Scoring({name: 1}), maps)(maps)[0] for name in maps]
    torch.testing.assert_close(blended, (alone[0] + alone[1]) / 2)
    for map_B1HW in alone:
        assert map_B1HW.mean().item() == pytest.approx(0, abs=1e-4) and map_B1HW.std().item() == pytest.approx(
            1, abs=1e-2
        )


def test_weight_zero_needs_no_map_and_changes_nothing():
    maps = good_maps()
    without = fit_scorer(Scoring({"a": 1}), maps)(maps)
    zeroed = fit_scorer(Scoring({"a": 3, "b": 0}), {"a": maps["a"]})({"a": maps["a"]})
    torch.testing.assert_close(without, zeroed)


def test_position_calibration_finds_a_small_error_where_the_model_never_errs():
    maps = {"a": good_maps()["a"]}
    defect = {"a": maps["a"][:1].clone()}
    defect["a"][0, 0, 14:18, 3:7] += 1.0  # far below what is usual on the right
    rank = {}
    for calibration in ("none", "position"):
        scorer = fit_scorer(Scoring({"a": 1}, smoothing=1.0, calibration=calibration), maps)
        map_B1HW, _ = scorer(defect)
        rank[calibration] = (map_B1HW[0, 0] > map_B1HW[0, 0, 14:18, 3:7].max()).sum().item()
    assert rank["position"] == 0 and rank["none"] > 50


def test_position_calibration_of_identical_good_images_stays_finite():
    maps = {"a": torch.ones(4, 1, 16, 16)}
    map_B1HW, score_B = fit_scorer(Scoring({"a": 1}, calibration="position"), maps)(maps)
    assert torch.isfinite(map_B1HW).all() and torch.isfinite(score_B).all()


@pytest.mark.parametrize("calibration", ["none", "position"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_scorer_round_trips_through_json_and_tensors(calibration, reduction):
    maps = good_maps()
    scorer = fit_scorer(Scoring({"a": 2, "b": 1}, 1.5, reduction, calibration), maps)
    scoring = Scoring.from_dict(json.loads(json.dumps(scorer.scoring.to_dict())))
    assert scoring == scorer.scoring
    again = Scorer.from_state(scoring, scorer.state())
    for before, after in zip(scorer(maps), again(maps), strict=True):
        assert torch.equal(before, after)
        assert before.dtype == torch.float32
    assert scorer(maps)[0].shape == (12, 1, 32, 40) and scorer(maps)[1].shape == (12,)


@pytest.mark.parametrize(("fusion", "least"), [("scores", -np.inf), ("excesses", 0.0)])
def test_fused_scores_are_the_mean_of_each_maps_score_in_deviations_from_good_ones(fusion, least):
    maps, others = (
        good_maps(),
        {
            name: map_B1HW.flip(0)[:5] * torch.linspace(0.8, 1.2, 5).view(-1, 1, 1, 1)
            for name, map_B1HW in good_maps().items()
        },
    )
    shares = {"a": 3.0, "b": 1.0}
    scorer = fit_scorer(Scoring(shares, 1.0, "top1", {"a": "position", "b": "none"}, fusion), maps)
    expected, below = 0, False
    for name, share in shares.items():
        alone = Scoring({name: 1.0}, 1.0, "top1", "position" if name == "a" else "none")
        halves = [{name: maps[name][half::2]} for half in range(2)]
        usual = torch.cat([fit_scorer(alone, halves[1 - half])(halves[half])[1] for half in range(2)])
        score_B = fit_scorer(alone, maps)(others)[1]
        deviation_B = (score_B - usual.mean()) / usual.std(correction=0)
        below = below or bool((deviation_B < 0).any())
        expected = expected + share / 4 * deviation_B.clamp_min(least)
    assert below
    map_B1HW, score_B = scorer(others)
    torch.testing.assert_close(score_B, expected)
    blended = fit_scorer(Scoring(shares, 1.0, "top1", {"a": "position", "b": "none"}), maps)
    torch.testing.assert_close(map_B1HW, blended(others)[0])
    again = Scorer.from_state(Scoring.from_dict(json.loads(json.dumps(scorer.scoring.to_dict()))), scorer.state())
    assert torch.equal(again(others)[1], score_B)
    assert all(statistics.score_2 is None for statistics in blended.statistics.values())


def test_excesses_keep_small_deviations_and_let_no_map_decide_alone():
    maps = good_maps()
    shares, places = {"a": 1.0, "b": 1.0}, (slice(0, 2), slice(4, 6), slice(8, 10))
    seen = {name: values.mean(dim=0, keepdim=True).clone() for name, values in maps.items()}
    plain, compressed = (fit_scorer(Scoring(shares, blend=blend), maps) for blend in BLENDS)
    away = {"a": (40.0, 12.0, -3.0), "b": (0.0, 12.0, 0.1)}  # in deviations: a alone, both, less than usual
    for name, by_place in away.items():
        statistics = plain.statistics[name]
        for place, deviations in zip(places, by_place, strict=True):
            seen[name][..., place, place] = statistics.mean + deviations * statistics.std
    one_map, both, less = (plain(seen)[0][0, 0, place, place].mean() for place in places)
    assert one_map > both and less < -1
    one_map, both, less = (compressed(seen)[0][0, 0, place, place].mean() for place in places)
    assert one_map < both
    assert less == pytest.approx(0.05, abs=0.003)  # half of what b says, and nothing of a
    assert (compressed(seen)[0] >= 0).all()


def test_map_weights_change_the_map_and_leave_the_score():
    maps = good_maps()
    given = {"weights": {"a": 3, "b": 1}, "reduction": "top1", "fusion": "excesses"}
    alike, other = (Scoring(**given, map_weights=shares) for shares in (None, {"a": 1, "b": 4}))
    (map_B1HW, score_B), (other_B1HW, others_B) = (fit_scorer(scoring, maps)(maps) for scoring in (alike, other))
    assert torch.equal(score_B, others_B)
    by_score = fit_scorer(Scoring({"a": 1, "b": 4}), maps)(maps)[0]
    torch.testing.assert_close(other_B1HW, by_score)
    assert not torch.allclose(map_B1HW, other_B1HW)


def test_restricted_scoring_keeps_what_its_maps_count_and_how_they_are_calibrated():
    scoring = Scoring(
        {"a": 3, "b": 1}, 2.0, "top1", {"a": "position", "b": "none"}, "scores", "excesses", {"a": 1, "b": 4}
    )
    kept = scoring.restricted(["b"])
    assert kept == Scoring({"b": 1}, 2.0, "top1", {"b": "none"}, "scores", "excesses", {"b": 4})
    assert scoring.restricted(["a", "b"]) == scoring
    assert scoring.restricted(["c"]).weights == {"c": 1.0}  # one that did not count


def test_scoring_one_image_equals_scoring_it_in_a_batch():
    maps = good_maps()
    scorer = fit_scorer(Scoring({"a": 1, "b": 1}, 2.0, "top1", "position"), maps)
    torch.testing.assert_close(scorer({n: m[5:6] for n, m in maps.items()})[1], scorer(maps)[1][5:6])


def test_scorer_leaves_its_input_alone():
    maps = good_maps()
    before = {name: map_B1HW.clone() for name, map_B1HW in maps.items()}
    fit_scorer(Scoring({"a": 1, "b": 1}), maps)(maps)
    assert all(torch.equal(maps[name], before[name]) for name in maps)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"weights": {}}, "weights"),
        ({"weights": {"a": 0}}, "not all zero"),
        ({"weights": {"a": -1}}, ">= 0"),
        ({"weights": {"a": float("nan")}}, ">= 0"),
        ({"weights": {"a": 1}, "smoothing": -1}, "sigma"),
        ({"weights": {"a": 1}, "reduction": "median"}, "max, mean, top1"),
        ({"weights": {"a": 1}, "calibration": "pixel"}, "none, position"),
        ({"weights": {"a": 1, "b": 1}, "calibration": {"a": "none"}}, "none, position"),
        ({"weights": {"a": 1}, "fusion": "votes"}, "maps, scores, excesses"),
        ({"weights": {"a": 1}, "blend": "votes"}, "deviations, excesses"),
        ({"weights": {"a": 1}, "fusion": "scores", "map_weights": {"a": -1}}, "map_weights must be >= 0"),
        ({"weights": {"a": 1}, "fusion": "scores", "map_weights": {"b": 1}}, r"must name the maps of weights, \['a'\]"),
        ({"weights": {"a": 1}, "map_weights": {"a": 1}}, "fusion be one of scores, excesses"),
        ({"weights": {"a": 1}, "fusion": "scores", "reduction": "own"}, "not reduced from maps"),
        ({"weights": {"a": 1}, "sigma": 1}, "not a scoring"),
    ],
)
def test_scoring_refuses_values_out_of_range(values, said):
    with pytest.raises(ModelError, match=said):
        Scoring.from_dict(values)


def test_scorer_names_what_is_missing_or_of_the_wrong_size():
    maps = good_maps()
    scorer = fit_scorer(Scoring({"a": 1}, calibration="position"), maps)
    with pytest.raises(ModelError, match=r"needs the maps \['a'\]"):
        scorer({"b": maps["b"]})
    with pytest.raises(ModelError, match="resize the images"):
        scorer({"a": maps["a"][..., :32]})
    with pytest.raises(ModelError, match="a/std"):
        Scorer.from_state(scorer.scoring, {"a/mean": torch.zeros(1)})
    with pytest.raises(ModelError, match="no map 'c'"):
        fit_scorer(Scoring({"c": 1}), maps)
    maps["a"][3, 0, 2, 2] = torch.nan
    with pytest.raises(ModelError, match="'a' has values that are not finite"):
        fit_scorer(Scoring({"a": 1}), maps)


@pytest.mark.gpu
def test_scorer_from_the_cpu_scores_maps_on_the_gpu_alike():
    maps = good_maps()
    scorer = fit_scorer(Scoring({"a": 1, "b": 1}, 2.0, "top1", "position"), maps)
    map_B1HW, score_B = scorer({name: map_B1HW.cuda() for name, map_B1HW in maps.items()})
    torch.testing.assert_close(map_B1HW.cpu(), scorer(maps)[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(score_B.cpu(), scorer(maps)[1], atol=1e-4, rtol=1e-4)


def test_scorer_of_a_models_own_score_keeps_the_order_of_that_score():
    generator = torch.Generator().manual_seed(0)
    map_B1HW = torch.rand(6, 1, 16, 16, generator=generator)
    own_B = torch.tensor([3.0, 1.0, 2.0, 6.0, 5.0, 4.0])
    maps = {"anomaly_map": map_B1HW, IMAGE_SCORE: own_B.view(-1, 1, 1, 1).expand(-1, 1, 16, 16)}
    scorer = fit_scorer(Scoring({"anomaly_map": 1.0}, smoothing=1.0, reduction="own"), maps)
    blended_B1HW, score_B = scorer(maps)
    assert score_B.argsort().tolist() == own_B.argsort().tolist()
    plain = fit_scorer(Scoring({"anomaly_map": 1.0}, smoothing=1.0), maps)
    assert torch.equal(blended_B1HW, plain(maps)[0])
    again = Scorer.from_state(scorer.scoring, scorer.state())
    assert torch.equal(again(maps)[1], score_B)
    with pytest.raises(ModelError, match="needs the maps \\['image_score'\\]"):
        scorer({"anomaly_map": map_B1HW})
