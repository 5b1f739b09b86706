from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data, transform

from msad.models.errors import ModelError
from msad.models.synthesis.foreground import object_weight
from msad.models.synthesis.synthetic_defects import FAMILIES, GRADES, SyntheticSet, make_synthetic_defects

INDUSTRIAL = Path(os.environ.get("MSAD_DATA", Path(__file__).parents[4] / "shared" / "data" / "industrial"))
SIZE = 128


@cache
def photographs(name: str) -> np.ndarray:
    """Good images to damage: crops of a shipped photograph, or parts from the industrial images where they are."""
    if name in ("brick", "gravel"):
        whole = getattr(data, name)()
        crops = [whole[y : y + 256, x : x + 256] for y in (0, 128, 256) for x in (0, 128, 256)]
        small = [transform.resize(crop, (SIZE, SIZE), anti_aliasing=True) for crop in crops]
        return np.repeat((np.stack(small) * 255).astype(np.uint8)[..., None], 3, axis=3)
    folder = INDUSTRIAL / name / "train" / "good"
    if not folder.is_dir():
        pytest.skip(f"no images at {folder}")
    paths = sorted(folder.iterdir())[:12]
    return np.stack([np.asarray(Image.open(path).convert("RGB").resize((SIZE, SIZE))) for path in paths])


@cache
def defects(name: str) -> SyntheticSet:
    return make_synthetic_defects(photographs(name), seed=0)


def change(name: str) -> np.ndarray:
    made = defects(name)
    return np.abs(made.images.astype(int) - photographs(name)[made.source]).max(axis=3)


every_photograph = pytest.mark.parametrize("name", ["brick", "gravel", "bottle", "magnetic_tile"])


@every_photograph
def test_masks_are_exactly_what_changed_and_never_empty(name):
    made = defects(name)
    assert made.images.dtype == np.uint8 and made.masks.dtype == bool
    np.testing.assert_array_equal(change(name) > 0, made.masks)
    assert made.masks.sum(axis=(1, 2)).min() >= 6


@every_photograph
def test_every_family_and_grade_is_there_and_sources_go_round(name):
    made = defects(name)
    pairs = list(zip(made.family.tolist(), made.grade.tolist(), strict=True))
    assert sorted(pairs) == sorted((f, g) for f in range(len(FAMILIES)) for g in range(len(GRADES)) for _ in range(6))
    for pair in set(pairs):
        sources = made.source[[p == pair for p in pairs]]
        assert len(set(sources.tolist())) == 6


def test_defects_that_an_even_product_cannot_show_are_reported_as_what_was_drawn_instead():
    """Nothing to warp, blur, blend or take away: these were changes of shade under other names."""
    made = make_synthetic_defects(np.full((5, 64, 64, 3), 120, np.uint8), seed=0, per_group=2)
    counts = {FAMILIES[f]: int(np.sum(made.family == f)) for f in range(len(FAMILIES)) if (made.family == f).any()}
    assert counts == {"scratch": 6, "fade": 30}
    assert [int(np.sum(made.grade == grade)) for grade in range(len(GRADES))] == [12, 12, 12]
    lines = make_synthetic_defects(np.full((5, 64, 64, 3), 255, np.uint8), seed=0, per_group=2)
    assert set(lines.family.tolist()) == {FAMILIES.index("scratch"), FAMILIES.index("fade")}


@pytest.mark.parametrize("per_group", [1, 2, 6])
def test_defects_lie_on_both_halves_of_the_good_images_alike(per_group):
    """A score is chosen on one half and read on the other, see `msad.models.scoring`."""
    made = make_synthetic_defects(photographs("gravel")[:5], seed=3, per_group=per_group)
    halves = [int(np.sum(made.source % 2 == half)) for half in (0, 1)]
    assert halves == [9 * per_group, 9 * per_group]
    if per_group > 1:
        groups = 10 * made.family + made.grade
        assert all(len(set((made.source[groups == group] % 2).tolist())) == 2 for group in set(groups.tolist()))


@every_photograph
def test_grades_grow_from_faint_to_plain_in_every_family(name):
    made, changed = defects(name), change(name)
    for family in range(len(FAMILIES)):
        total = [changed[(made.family == family) & (made.grade == g)].sum(axis=(1, 2)).mean() for g in range(3)]
        assert total[0] < total[1] < total[2], FAMILIES[family]
    contrast = [changed[made.grade == g][made.masks[made.grade == g]].mean() for g in range(3)]
    assert contrast[0] < 16 and contrast[2] > contrast[0]


def test_defects_fall_on_the_product_and_not_on_the_empty_background():
    made, weight = defects("bottle"), object_weight(photographs("bottle"))
    assert 0.5 < weight.mean() < 0.7  # a round bottle in a square picture
    centres = [np.argwhere(mask).mean(axis=0).round().astype(int) for mask in made.masks]
    on_product = [weight[source, y, x] for source, (y, x) in zip(made.source, centres, strict=True)]
    assert np.mean(on_product) > 0.9


def test_object_weight_of_a_texture_is_one_everywhere():
    assert object_weight(photographs("gravel")).min() == 1
    assert object_weight(photographs("brick")).min() == 1


def test_object_weight_finds_a_dark_part_on_a_light_table():
    images = np.full((3, 64, 64, 3), 230, np.uint8)
    images += np.random.default_rng(0).integers(0, 5, images.shape, dtype=np.uint8)
    images[:, 20:44, 16:48] = 60
    images[:, 30:34, 30:34] = 230  # a hole in the part belongs to it
    weight = object_weight(images)
    assert weight[:, 22:42, 18:46].min() == 1
    assert weight[:, :18].max() == 0 and weight[:, :, 50:].max() == 0


def test_grey_images_get_grey_defects_and_coloured_ones_colour():
    made = defects("brick")
    assert (made.images == made.images[..., :1]).all()
    coloured = photographs("brick").copy()
    coloured[..., 2] //= 2
    made = make_synthetic_defects(coloured, seed=0, per_group=2)
    shift = made.images.astype(int) - coloured[made.source]
    scratches = made.family == FAMILIES.index("scratch")
    assert (np.ptp(shift[scratches], axis=3) > 3).any()


def test_the_same_seed_gives_the_same_set_and_a_larger_one_contains_it():
    good = photographs("gravel")[:5]
    small, again, large = (make_synthetic_defects(good, seed=7, per_group=count) for count in (2, 2, 3))
    for name in vars(small):
        np.testing.assert_array_equal(getattr(small, name), getattr(again, name))
        of_group = getattr(large, name).reshape(18, 3, *getattr(large, name).shape[1:])[:, :2]
        np.testing.assert_array_equal(getattr(small, name), of_group.reshape(getattr(small, name).shape))
    assert not np.array_equal(small.images, make_synthetic_defects(good, seed=8, per_group=2).images)


@pytest.mark.parametrize("level", [0, 3, 128, 255])
def test_even_images_still_get_a_visible_defect(level):
    made = make_synthetic_defects(np.full((2, 48, 64, 3), level, np.uint8), seed=1, per_group=2)
    assert made.images.shape == (36, 48, 64, 3)
    assert made.masks.sum(axis=(1, 2)).min() >= 6


def test_one_good_image_is_enough():
    made = make_synthetic_defects(photographs("brick")[:1], seed=0, per_group=3)
    assert set(made.source.tolist()) == {0}


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (np.zeros((2, 64, 64), np.uint8), "uint8 images"),
        (np.zeros((2, 64, 64, 3), np.float32), "uint8 images"),
        (np.zeros((0, 64, 64, 3), np.uint8), "uint8 images"),
        (np.zeros((2, 16, 64, 3), np.uint8), "at least 32"),
    ],
)
def test_images_that_cannot_be_damaged_are_refused(images, said):
    with pytest.raises(ModelError, match=said):
        make_synthetic_defects(images, seed=0)


def test_defects_of_large_images_are_as_small_as_those_of_a_tile():
    good = np.tile(photographs("gravel")[:2], (1, 4, 4, 1))
    side = good.shape[1]
    large, small = (make_synthetic_defects(good, seed=0, per_group=2, view_size=view) for view in (None, side // 4))
    assert small.images.shape == large.images.shape
    extent = [np.median([np.ptp(np.nonzero(mask)[0]) + 1 for mask in made.masks]) for made in (large, small)]
    assert 2.5 < extent[0] / extent[1] < 6
    faint = small.masks[small.grade == GRADES.index("faint")]
    assert np.median([np.ptp(np.nonzero(mask)[0]) + 1 for mask in faint]) < 0.1 * side / 2
