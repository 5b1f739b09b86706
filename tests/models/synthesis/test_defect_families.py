from __future__ import annotations

import numpy as np
import pytest
from skimage import data

from msad.models.synthesis.defect_families import (
    FAMILY_FUNCTIONS,
    _membrane,
    blend,
    blur,
    fade,
    irregular_alpha,
    missing,
    scratch,
    warp,
)

BRICK = np.repeat(data.brick()[:61, :61, None], 3, axis=2).astype(np.float32)
GRAVEL = np.repeat(data.gravel()[:61, :61, None], 3, axis=2).astype(np.float32)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("family", FAMILY_FUNCTIONS)
@pytest.mark.parametrize("seed", range(5))
def test_families_leave_the_patch_border_alone(family, seed):
    strength = {"scratch": 60, "blend": 1.0, "warp": 3.0, "blur": 2.0, "fade": 40, "missing": 1.0}[family]
    changed = FAMILY_FUNCTIONS[family](BRICK, GRAVEL, 15.0, strength, True, rng(seed))
    border = np.ones(BRICK.shape[:2], bool)
    border[1:-1, 1:-1] = False
    assert np.abs(changed - BRICK)[border].max() < 1
    assert np.abs(changed - BRICK).max() > 5


def test_membrane_reproduces_a_harmonic_function_from_its_contour():
    y, x = np.indices((40, 40)).astype(np.float64)
    harmonic = np.repeat((x * x - y * y + 3 * x - 2 * y)[..., None], 3, axis=2)
    inside = irregular_alpha((40, 40), 12, 0.2, rng()) > 0
    np.testing.assert_allclose(_membrane(harmonic, inside)[inside], harmonic[inside], atol=1e-6)


def test_blend_of_a_brighter_copy_of_the_same_place_is_invisible():
    # Poisson blending forgets the donor's brightness; at low opacity nothing of it is kept.
    flat = np.full_like(BRICK, 100.0)
    changed = blend(flat, flat + 80, 12.0, 0.05, True, rng())
    assert np.abs(changed - flat).max() < 0.1


def test_scratch_is_thin_and_as_strong_as_asked():
    flat = np.full((81, 81, 3), 120.0, np.float32)
    changed = np.abs(scratch(flat, flat, 24.0, 50.0, True, rng(2)) - flat)[..., 0]
    assert 40 <= changed.max() <= 66  # strength × the strongest pressure
    assert (changed > 10).mean() < 0.05


def test_missing_part_on_an_even_ground_leaves_the_ground():
    ground = np.full((61, 61, 3), 90.0, np.float32)
    part = ground.copy()
    part[27:34, 27:34] = 200
    changed = missing(part, ground, 15.0, 1.0, True, rng())
    np.testing.assert_allclose(changed, ground, atol=1e-3)
    np.testing.assert_allclose(missing(part, ground, 15.0, 0.5, True, rng()), (part + ground) / 2, atol=1e-3)


def test_warp_moves_grey_levels_and_invents_none():
    changed = warp(BRICK, GRAVEL, 15.0, 4.0, True, rng(1))
    assert changed.min() >= BRICK.min() and changed.max() <= BRICK.max()


def test_blur_takes_detail_away_and_a_negative_strength_adds_it():
    middle = (slice(25, 36), slice(25, 36))
    detail = [
        np.abs(np.diff(image[middle], axis=0)).mean()
        for image in (
            blur(GRAVEL, BRICK, 15.0, 2.0, True, rng()),
            GRAVEL,
            blur(GRAVEL, BRICK, 15.0, -2.0, True, rng()),
        )
    ]
    assert detail[0] < 0.7 * detail[1] and detail[2] > 1.5 * detail[1]


def test_fade_has_no_edge():
    flat = np.full((81, 81, 3), 120.0, np.float32)
    changed = np.abs(fade(flat, flat, 20.0, 40.0, True, rng(4)) - flat)[..., 0]
    assert changed.max() > 30
    assert max(np.abs(np.diff(changed, axis=axis)).max() for axis in (0, 1)) < 8
