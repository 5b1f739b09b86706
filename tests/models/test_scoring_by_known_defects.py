"""What known defects choose beside the synthetic ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from msad.models.defects import KnownDefects, known_share
from msad.models.scoring import Scoring, choose_scoring
from tests.models.noise_set import noise_set


def real_defects(count, masked=True, side=24):
    """Known defects whose mask is a square in a corner; no image, for the maps of the test have seen none."""
    masks = np.zeros((count, side, side), bool)
    masks[:, :6, :6] = masked
    return KnownDefects(np.empty((count, side, side, 3), np.uint8), masks, np.full(count, masked), ("dent",) * count)


def test_known_defects_turn_the_choice_to_the_map_that_sees_them():
    """One map sees the synthetic defects, the other the real ones."""
    synthetic, generator = noise_set(20, np.random.default_rng(0)), torch.Generator().manual_seed(0)
    real = real_defects(30)
    good, defects = (
        {name: torch.randn(count, 1, 24, 24, generator=generator) for name in ("drawn", "real")}
        for count in (20, len(synthetic.masks) + len(real))
    )
    defects["drawn"][: len(synthetic.masks), 0] += 4 * torch.from_numpy(synthetic.masks)
    defects["real"][len(synthetic.masks) :, 0] += 4 * torch.from_numpy(real.masks)
    alone = {name: maps[: len(synthetic.masks)] for name, maps in defects.items()}
    candidates = [Scoring({name: 1.0}) for name in ("drawn", "real")]
    assert choose_scoring(good, alone, synthetic, candidates).scorer.scoring == candidates[0]
    choice = choose_scoring(good, defects, synthetic, candidates, known=real)
    assert choice.scorer.scoring == candidates[1]
    dent = choice.validation.per_group["known/dent"]
    assert dent["images"] == 30 and dent["image_auroc"] > 0.95 and dent["pixel_ap"] > 0.9
    share = known_share(30)
    assert choice.validation.image_auroc == pytest.approx(share * 1 + (1 - share) * 0.5, abs=0.1)


def test_known_defects_without_masks_have_no_figure_of_pixels_and_leave_that_to_the_others():
    synthetic, generator = noise_set(20, np.random.default_rng(0)), torch.Generator().manual_seed(0)
    real = real_defects(4, masked=False)
    good, defects = (
        {"a": torch.randn(count, 1, 24, 24, generator=generator)} for count in (20, len(synthetic.masks) + len(real))
    )
    alone = {"a": defects["a"][: len(synthetic.masks)]}
    with_real, without = (
        choose_scoring(good, maps, synthetic, [Scoring({"a": 1.0})], known=known).validation
        for maps, known in ((defects, real), (alone, None))
    )
    assert set(with_real.per_group["known/dent"]) == {"images", "image_auroc"}
    assert with_real.pixel_ap == pytest.approx(without.pixel_ap)
    assert with_real.image_auroc != pytest.approx(without.image_auroc)


def seen_by(names, real, synthetic, strengths, seed=0):
    """Maps of noise in which known defects show with each map's strength."""
    generator = torch.Generator().manual_seed(seed)
    good, defects = (
        {name: torch.randn(count, 1, 24, 24, generator=generator) for name in names}
        for count in (20, len(synthetic.masks) + len(real))
    )
    for name, strength in strengths.items():
        defects[name][len(synthetic.masks) :, 0] += strength * torch.from_numpy(real.masks)
    return good, defects


@pytest.mark.parametrize(("count", "turned"), [(4, False), (20, True)])
def test_fixed_scoring_gives_way_to_enough_known_defects_that_speak_for_another(count, turned):
    synthetic, real = noise_set(20, np.random.default_rng(0)), real_defects(count)
    good, defects = seen_by(("own", "other"), real, synthetic, {"other": 4.0})
    fixed, *others = [Scoring({name: 1.0}) for name in ("own", "other")]
    choice = choose_scoring(good, defects, synthetic, [fixed, *others], known=real, fixed=fixed)
    assert choice.scorer.scoring == (others[0] if turned else fixed)


def test_fixed_scoring_stays_whatever_synthetic_defects_say_and_against_a_small_difference():
    synthetic, real = noise_set(20, np.random.default_rng(0)), real_defects(20)
    good, defects = seen_by(("own", "other"), real, synthetic, {"own": 1.0, "other": 1.02})
    defects["other"][: len(synthetic.masks), 0] += 4 * torch.from_numpy(synthetic.masks)
    fixed, *others = [Scoring({name: 1.0}, reduction="mean") for name in ("own", "other")]
    assert choose_scoring(good, defects, synthetic, [fixed, *others], known=real, fixed=fixed).scorer.scoring == fixed
    alone = {name: maps[: len(synthetic.masks)] for name, maps in defects.items()}
    assert choose_scoring(good, alone, synthetic, [fixed, *others], fixed=fixed).scorer.scoring == fixed
    assert choose_scoring(good, alone, synthetic, [fixed, *others]).scorer.scoring == others[0]


def test_noise_with_known_defects_gets_the_score_of_guessing_too():
    found = []
    for seed in range(12):
        synthetic, generator = noise_set(20, np.random.default_rng(seed)), torch.Generator().manual_seed(seed)
        real = real_defects(5)
        good, defects = (
            {f"map {n}": torch.randn(count, 1, 24, 24, generator=generator) for n in range(3)}
            for count in (20, len(synthetic.masks) + len(real))
        )
        found.append(choose_scoring(good, defects, synthetic, known=real).validation.image_auroc)
    assert abs(np.mean(found) - 0.5) < 2.5 * np.std(found, ddof=1) / len(found) ** 0.5
