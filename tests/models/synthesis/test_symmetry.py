from __future__ import annotations

import numpy as np
import pytest

from msad.models.synthesis.symmetry import find_symmetries

ALLOWED = {
    "part at any angle": {"turn_90", "turn_180", "rotation"},
    "part upright": set(),
    "printed capsule": set(),
    "isotropic texture": {"mirror_lr", "mirror_ud", "turn_90", "turn_180", "rotation", "shift"},
    "vertical stripes": {"mirror_lr", "mirror_ud", "turn_180", "shift"},
    "diagonal stripes": {"turn_180", "shift"},
}


def allowed(symmetries):
    return {name for name in symmetries.ratios if getattr(symmetries, name)}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ALLOWED)
def test_find_symmetries_of_drawn_products(name, seed, drawn):
    found = find_symmetries(drawn(name, seed))
    assert allowed(found) == ALLOWED[name], found.ratios


def test_find_symmetries_too_few_images_allow_nothing(drawn):
    found = find_symmetries(drawn("isotropic texture")[:7])
    assert not allowed(found) and not (found.mirror_lr or found.rotation or found.shift)


def test_find_symmetries_oblong_images_are_never_turned_by_a_quarter(drawn):
    found = find_symmetries(drawn("isotropic texture")[:, :64])
    assert found.mirror_lr and found.turn_180 and not found.turn_90
    assert not find_symmetries(drawn("isotropic texture")[:, :56]).rotation


def oblong(images_NHWC):
    """On a background that is half as wide again."""
    around = np.full((len(images_NHWC), 96, 144, 3), 200, np.uint8)
    around[:, :, 24:-24] = images_NHWC
    return around


def test_find_symmetries_parts_at_any_angle_on_oblong_images(drawn):
    anyhow, upright = (find_symmetries(oblong(drawn(name))) for name in ("part at any angle", "part upright"))
    assert anyhow.rotation and anyhow.turn_180 and not (anyhow.turn_90 or anyhow.mirror_lr)
    assert not (upright.rotation or upright.turn_180)


def test_find_symmetries_identical_images():
    flat = np.full((10, 32, 32, 3), 90, dtype=np.uint8)
    lopsided = flat.copy()
    lopsided[:, :, :10] = 200
    assert find_symmetries(flat).rotation
    found = find_symmetries(lopsided)
    assert found.mirror_ud and not (found.mirror_lr or found.turn_180 or found.turn_90 or found.rotation)


def test_find_symmetries_looks_at_the_whole_set_evenly(drawn):
    upright, turned = drawn("part upright"), drawn("part upright")[:, ::-1, ::-1]
    assert not find_symmetries(upright).turn_180
    assert find_symmetries(np.concatenate([upright, turned] * 4)).turn_180


def test_find_symmetries_of_real_bottles(industrial):
    from PIL import Image

    paths = sorted((industrial / "bottle/train/good").iterdir())[::4]
    images = np.stack([np.array(Image.open(path).convert("RGB").resize((128, 128))) for path in paths])
    found = find_symmetries(images)
    assert found.mirror_lr and found.rotation and not found.shift  # seen from above they are round
