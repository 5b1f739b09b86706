"""The best of several evaluations, and what choosing it is worth."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import torch

from msad.models.defects import KnownDefects
from msad.models.false_regions import pixel_threshold
from msad.models.regions import find_regions
from msad.models.registry import build
from msad.models.scorer import Scorer, Scoring
from msad.models.scoring import Choice, Reading, choose_scoring, default_candidates
from msad.models.synthesis.synthetic_defects import GRADES, make_synthetic_defects
from msad.models.tiling import TilingConfig, tiled
from msad.training.batches import PlainBatches
from msad.training.cross_fitting import fit_to_usual
from msad.training.job_config import JobConfig
from msad.training.training_data import TrainingData
from msad.training.validation import BestCheckpoint, anomaly_maps, figures, fixed_scoring, set_thresholds, validate

JOB = JobConfig(category="any", architecture="baseline", image_size=32, batch_size=4)


def choice(*halves):
    """Of two pairs: what a half thinks of its choice, and what the other half has it for."""
    figures = {"pixel_ap": 0.0, "prevalence": 0.0, "images": 3, "weight": 1.0}
    readings = tuple(Reading(value, {"fade/plain": {**figures, "image_auroc": auroc}}) for value, auroc in halves)
    return Choice(Scorer(Scoring({"a": 1.0}), {}), readings)


@pytest.fixture
def model():
    return build("baseline", base_width=4).eval()


def test_best_epoch_of_each_half_is_read_on_the_other(model):
    best = BestCheckpoint()
    best.update(0.7, 1, [choice((0.9, 0.5), (0.6, 0.8))], model)
    best.update(0.6, 2, [choice((0.7, 1.0), (0.8, 0.3))], model)
    assert best.epoch == 1
    assert best.validations[0].image_auroc == pytest.approx((0.5 + 0.3) / 2)


def test_best_epoch_of_several_products_is_that_of_the_highest_mean(model):
    best = BestCheckpoint()
    best.update(0.7, 1, [choice((0.9, 0.5), (0.6, 0.8)), choice((0.5, 0.1), (0.6, 0.2))], model)
    best.update(0.6, 2, [choice((0.7, 1.0), (0.5, 0.3)), choice((0.9, 0.4), (0.6, 0.6))], model)
    first, second = best.validations
    # The first half prefers the second epoch, by 1.6 to 1.4 of both, the second half the first one, by 1.2 to 1.1.
    assert first.image_auroc == pytest.approx((1.0 + 0.8) / 2)
    assert second.image_auroc == pytest.approx((0.4 + 0.2) / 2)


def test_best_of_many_evaluations_of_noise_is_worth_nothing(model):
    """The highest of twelve independent evaluations of noise (deviation 0.05 each) would have 0.57."""
    rng, worth, highest = np.random.default_rng(0), [], []
    for _ in range(200):
        best, evaluations = BestCheckpoint(), []
        for epoch in range(1, 13):
            # An evaluation of noise: a half's figure says nothing about the other's.
            first, second = rng.normal(0.5, 0.05 * 2**0.5, 2)
            one = choice((first, second), (second, first))
            evaluations.append(one.validation.image_auroc)
            best.update(evaluations[-1], epoch, [one], model)
        worth.append(best.validations[0].image_auroc)
        highest.append(max(evaluations))
    assert np.mean(highest) > 0.57
    assert np.mean(worth) == pytest.approx(0.5, abs=0.02)


def test_best_goes_on_from_a_checkpoint(model):
    best = BestCheckpoint()
    best.update(0.7, 1, [choice((0.9, 0.5), (0.6, 0.8))], model)
    file = io.BytesIO()
    torch.save(best.state(), file)
    file.seek(0)
    again = BestCheckpoint.from_state(torch.load(file, weights_only=True))
    for one in (best, again):
        one.update(0.6, 2, [choice((0.7, 1.0), (0.8, 0.3))], model)
    assert again.validations == best.validations and (again.epoch, again.score) == (1, 0.7)
    assert all(torch.equal(value, again.model[name]) for name, value in best.model.items())


@pytest.fixture(scope="module")
def data():
    images = np.random.default_rng(0).integers(0, 256, (15, 32, 32, 3), dtype=np.uint8)
    return TrainingData(images[:4], images[4:], make_synthetic_defects(images[4:], seed=0, per_group=2))


def held_out_of(model, batches, scoring):
    """The good images and, behind them, the same as they were changed."""
    return fit_to_usual(
        scoring, *(anomaly_maps(model, part()) for part in (batches.validation, batches.changed)), all_usual=True
    )


def test_threshold_is_set_on_scores_of_the_scorer_that_is_delivered(model, data):
    batches = PlainBatches(JOB, data, torch.device("cpu"))
    job = dataclasses.replace(JOB, false_positive_rate=0.1, false_regions_per_image=0.3)
    scorer, held_out = held_out_of(model, batches, validate(model, batches, data, JOB).scorer.scoring)
    cuts = set_thresholds(model, batches, data, scorer, job, held_out)
    scores = held_out.good_scores()
    assert len(scores) == 22 and np.array_equal(cuts.good_scores, scores[:11])
    plain = data.synthetic.grade == GRADES.index("plain")
    maps = {name: value[torch.from_numpy(plain)] for name, value in anomaly_maps(model, batches.synthetic()).items()}
    shown = held_out.scores(maps, data.synthetic.source[plain])
    # One image in twelve is the lowest rate within 0.1 that eleven certify; and three within 0.3, of changed ones.
    assert cuts.threshold == pytest.approx(max(scores[:11].max(), np.sort(scores[11:])[-3]), rel=1e-5)
    strict = set_thresholds(model, batches, data, scorer, dataclasses.replace(job, false_positive_rate=0.01), held_out)
    highest, plain_end = scores[:11].max(), np.quantile(shown, 0.1)
    wanted = max(highest, (highest + plain_end) / 2, scores[11:].max())
    assert strict.threshold == pytest.approx(wanted, rel=1e-5)
    promised = cuts.false_alarms
    assert (promised.held_out, promised.target) == (11, 0.1) and promised.expected <= 0.1
    maps = held_out.good()[0]
    assert cuts.pixel_threshold == max(pixel_threshold(maps[:11], 0.3)[0], pixel_threshold(maps[11:], 0.9)[0])
    regions = [len(find_regions(one, cuts.pixel_threshold)) for one in maps]
    assert sum(regions[:11]) == cuts.false_regions.regions <= 2 and sum(regions[11:]) <= 9


def test_known_defects_choose_beside_the_synthetic_ones_and_lower_the_threshold(model, data):
    images = np.random.default_rng(1).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    masks = np.zeros((6, 32, 32), bool)
    masks[:5, :8] = True
    known = KnownDefects(images, masks, np.array([True] * 5 + [False]), ("dent",) * 6)
    with_known = dataclasses.replace(data, known=known)
    batches = PlainBatches(JOB, with_known, torch.device("cpu"))
    parts = (batches.validation, batches.synthetic, batches.known, batches.changed)
    maps = [anomaly_maps(model, part()) for part in parts]
    both = {name: torch.cat([maps[1][name], maps[2][name]]) for name in maps[0]}
    candidates = default_candidates(tuple(maps[0]), 32)
    wanted = choose_scoring(maps[0], both, data.synthetic, candidates, known=known, changed_maps=maps[3])
    found = validate(model, batches, with_known, JOB)
    assert found.readings == wanted.readings and found.scorer.scoring == wanted.scorer.scoring
    assert found.validation.per_group["known/dent"]["images"] == 6
    scorer, held_out = held_out_of(model, batches, found.scorer.scoring)
    cut = set_thresholds(model, batches, with_known, scorer, JOB, held_out).threshold
    plain = set_thresholds(model, PlainBatches(JOB, data, torch.device("cpu")), data, scorer, JOB, held_out).threshold
    assert held_out.good_scores()[: held_out.count].max() <= cut <= plain


@pytest.mark.parametrize("objective", ["validation_score", "validation_image_auroc", "validation_pixel_ap"])
def test_validation_chooses_by_the_objective(model, data, objective):
    batches = PlainBatches(JOB, data, torch.device("cpu"))
    *maps, changed = (anomaly_maps(model, part()) for part in (batches.validation, batches.synthetic, batches.changed))
    candidates = default_candidates(tuple(changed), 32)
    wanted = choose_scoring(*maps, data.synthetic, candidates, objective, changed_maps=changed)
    found = validate(model, batches, data, dataclasses.replace(JOB, objective=objective))
    assert found.readings == wanted.readings and found.scorer.scoring == wanted.scorer.scoring
    assert figures(found.validation)["validation_pixel_ap"] == found.validation.pixel_ap


def test_architecture_with_a_fixed_scoring_is_read_by_it_alone():
    model = build("feature_memory", rows=5)
    fixed = fixed_scoring(model, 128)
    assert fixed == Scoring({"memory": 1.0}, smoothing=2.0, reduction="top1", calibration="position")
    assert fixed_scoring(tiled(model, TilingConfig(tile=64)), 64).smoothing == 1.0
    assert fixed_scoring(build("baseline", base_width=4, depth=2), 128) is None
