from __future__ import annotations

import numpy as np
import pytest
import torch

from msad.models.errors import ModelError
from msad.models.synthesis.augmentation import CAMERA_SHARE, AugmentationConfig, Augmenter, recommend_kind
from msad.models.synthesis.foreground import empty_background
from msad.models.synthesis.symmetry import Symmetries, find_symmetries

KINDS = {
    "part at any angle": "rotated",
    "part upright": "aligned",
    "printed capsule": "aligned",
    "isotropic texture": "texture",
    "vertical stripes": "texture",
}
EVERY = pytest.mark.parametrize("name", KINDS)


STILL = {"noise": 0.0, "blur": 0.0, "jpeg_quality": 100}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def tensor(images_NHWC):
    return torch.from_numpy(np.ascontiguousarray(images_NHWC)).permute(0, 3, 1, 2).float() / 255


@pytest.fixture(scope="module")
def augmenters(drawn):
    """One per drawn product, by name, and its images."""
    return {name: (Augmenter(AugmentationConfig(), drawn(name)), tensor(drawn(name))) for name in KINDS}


@EVERY
def test_augmenter_finds_the_kind(name, augmenters):
    assert augmenters[name][0].kind == KINDS[name]


@EVERY
def test_augmenter_is_deterministic_and_in_range(name, augmenters):
    augmenter, images = augmenters[name]
    before, state = images.clone(), torch.random.get_rng_state()
    first, second = (augmenter(images, generator(3)) for _ in range(2))
    assert torch.equal(first, second) and not torch.equal(first, augmenter(images, generator(4)))
    assert first.shape == images.shape and first.dtype == torch.float32 and first.min() >= 0 and first.max() <= 1
    assert torch.equal(images, before) and torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("name", ["part at any angle", "part upright", "printed capsule"])
def test_augmented_products_are_as_near_to_good_ones_as_those_to_one_another(name, augmenters):
    augmenter, images = augmenters[name]
    made = augmenter(images, generator())

    def nearest(first):
        small = [
            torch.nn.functional.adaptive_avg_pool2d(x - x.mean((2, 3), True), 24).flatten(1) for x in (first, images)
        ]
        return torch.cdist(*small).fill_diagonal_(torch.inf).amin(dim=1).median()

    assert nearest(made) < nearest(images) + (nearest(images.flip(3)) - nearest(images)) / 2  # a mirrored part is not


def test_augmented_texture_keeps_its_grain(augmenters):
    augmenter, images = augmenters["vertical stripes"]
    made = augmenter(images, generator())
    across, down = (made.diff(dim=dim).abs().mean(dim=(1, 2, 3)) for dim in (3, 2))
    assert (across > 3 * down).all()


def test_augmenter_turns_parts_by_many_angles(augmenters):
    augmenter, images = augmenters["part at any angle"]
    one = images[:1].expand(60, -1, -1, -1)
    made = augmenter(one, generator()) < 0.5
    y, x = (torch.arange(96.0) - 47.5).view(-1, 1), (torch.arange(96.0) - 47.5).view(1, -1)
    weight = made[:, 0].float() / made[:, 0].float().sum(dim=(1, 2), keepdim=True)
    angle = torch.atan2((weight * y).sum(dim=(1, 2)), (weight * x).sum(dim=(1, 2)))
    assert len(((angle + torch.pi) / (2 * torch.pi) * 12).floor().unique()) >= 10  # of twelve sectors
    assert (made.float().mean() / (one < 0.5).float().mean()).item() == pytest.approx(1, abs=0.05)


def test_augmenter_half_of_the_aligned_pixels_are_moved_exactly(drawn):
    images = drawn("part upright")
    augmenter = Augmenter(AugmentationConfig(kind="aligned", light=0.0, shift=0.05, **STILL), images)
    one = tensor(images)[:1].expand(16, -1, -1, -1)
    made = augmenter(one, generator())
    offsets = []
    for image in made:
        matches = [
            (dy, dx)
            for dy in range(-5, 6)
            for dx in range(-5, 6)
            if torch.allclose(image[:, 8:-8, 8:-8], one[0].roll((dy, dx), (1, 2))[:, 8:-8, 8:-8], atol=1e-4)
        ]
        assert len(matches) == 1
        offsets += matches
    assert len(set(offsets)) > 8


def test_augmenter_light_stays_in_its_bounds():
    images = np.full((8, 32, 32, 3), 128, dtype=np.uint8)
    made = Augmenter(AugmentationConfig(kind="aligned", light=0.1), images)(tensor(images), generator())
    levels = made.mean(dim=(1, 2, 3))
    assert levels.std() > 0.01 and (levels - 128 / 255).abs().max() <= 0.1 * 128 / 255 + 0.025 + 1e-6


@pytest.mark.parametrize("only", ["noise", "blur", "jpeg_quality"])
def test_augmenter_does_each_thing_that_a_camera_does_to_a_sixth_of_the_images(only, drawn):
    images = drawn("part upright")
    values = {"light": 0.0, "shift": 0.0, **STILL, only: {"noise": 2.0, "blur": 0.8, "jpeg_quality": 50}[only]}
    augmenter = Augmenter(AugmentationConfig(kind="aligned", **values), images)
    one = tensor(images)[:1]
    many = [augmenter(one.expand(count, -1, -1, -1), generator(seed)) for count in (1, 7, 16) for seed in range(40)]
    distance = torch.cat([(made - one).abs().mean(dim=(1, 2, 3)) for made in many])
    assert (distance > 1e-5).float().mean().item() == pytest.approx(
        CAMERA_SHARE, abs=0.05
    )  # a narrow blur changes nothing
    assert distance.max() < 0.03
    if only == "noise":
        loudest = torch.cat(many)[distance.argmax()] - one[0]
        assert 1.0 < (loudest * 255).std() < 2.1 and torch.equal(loudest[0] != 0, loudest[1] != 0)


def test_augmenter_without_an_allowance_does_not_mirror(augmenters):
    augmenter, images = augmenters["printed capsule"]
    made = torch.cat([augmenter(images, generator(seed)) for seed in range(3)])
    strokes = (made.mean(dim=1) < 0.3).float()
    left, right = strokes[..., :48].sum(dim=(1, 2)), strokes[..., 48:].sum(dim=(1, 2))
    assert (left > right).all()


def test_augmenter_none_returns_the_images(drawn):
    images = drawn("isotropic texture")
    augmenter = Augmenter(AugmentationConfig(kind="none"), images)
    assert augmenter.kind == "none" and torch.equal(augmenter(tensor(images), generator()), tensor(images))


def test_augmenter_rotated_keeps_an_empty_background_in_the_corners(augmenters):
    augmenter, images = augmenters["part at any angle"]
    made = augmenter(images, generator())
    for corner in (made[..., :8, :8], made[..., :8, -8:], made[..., -8:, :8], made[..., -8:, -8:]):
        assert (corner - 200 / 255).abs().max() < 0.12


def test_augmenter_oblong_images(drawn):
    images = drawn("isotropic texture")[:, :64]
    augmenter = Augmenter(AugmentationConfig(), images)
    made = augmenter(tensor(images), generator())
    assert augmenter.kind == "texture" and made.shape == (24, 3, 64, 96)
    assert made.std().item() == pytest.approx(tensor(images).std().item(), rel=0.15)


def test_augmenter_turns_no_rectangle_by_a_quarter(drawn):
    """Were one turned, its stripes would lie."""
    images = np.tile(drawn("vertical stripes"), (1, 2, 1, 1))[:, :160]
    for symmetries in (Symmetries(turn_90=True, turn_180=True, rotation=True, shift=True), None):
        augmenter = Augmenter(AugmentationConfig(kind="texture"), images)
        augmenter.symmetries = symmetries or augmenter.symmetries
        made = torch.cat([augmenter(tensor(images), generator(seed)) for seed in range(3)])
        across, down = (made.diff(dim=dim).abs().mean(dim=(1, 2, 3)) for dim in (3, 2))
        assert made.shape[2:] == (160, 96) and (across > 3 * down).all()


def test_recommend_kind_follows_background_and_symmetries(drawn):
    part, texture = (empty_background(drawn(name)) for name in ("part upright", "isotropic texture"))
    assert recommend_kind(part, Symmetries(rotation=True)) == "rotated"
    assert recommend_kind(part, Symmetries(shift=True)) == "aligned"
    assert recommend_kind(texture, Symmetries(shift=True, rotation=True)) == "texture"
    assert recommend_kind(texture, Symmetries(rotation=True)) == "aligned"


def test_augmenter_given_kind_is_kept_and_still_guarded(drawn):
    augmenter = Augmenter(AugmentationConfig(kind="rotated"), drawn("part upright"))
    assert augmenter.kind == "rotated" and not augmenter.symmetries.mirror_lr
    assert augmenter.symmetries == find_symmetries(drawn("part upright"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "rotate"}, "kind is 'rotate'; did you mean 'rotated'"),
        ({"shift": 0.5}, "shift is 0.5; it must be between 0 and 0.25"),
        ({"light": -0.1}, "light is -0.1"),
        ({"noise": 99, "blur": 2}, "noise is 99; it must be between 0 and 16; blur is 2; it must be between 0 and 1"),
        ({"jpeg_quality": 0}, "jpeg_quality is 0; it must be between 1 and 100"),
        ({"light": float("nan"), "shift": "much"}, "shift is 'much'; it must be between 0 and 0.25; light is nan"),
    ],
)
def test_augmentation_config_bad_values(values, message):
    with pytest.raises(ModelError) as caught:
        AugmentationConfig(**values)
    assert message in str(caught.value)


@EVERY
@pytest.mark.parametrize("kind", ["own", "none"])
def test_augmented_tile_is_cut_from_the_augmented_image(name, kind, augmenters, drawn):
    _, images = augmenters[name]
    kind = "auto" if kind == "own" else kind
    augmenter = Augmenter(AugmentationConfig(kind=kind, **STILL), drawn(name))
    images, tile = images[:8], 40
    tiles = augmenter(images, generator(5), tile)
    again = generator(5)
    places = [(torch.rand(8, generator=again) * (side - tile + 1)).floor().long() for side in images.shape[-2:]]
    whole = augmenter(images, again)
    cut = torch.stack([image[:, y : y + tile, x : x + tile] for image, y, x in zip(whole, *places, strict=True)])
    assert tiles.shape == (8, 3, tile, tile) and len(set(zip(*map(torch.Tensor.tolist, places), strict=True))) > 4
    # A place that lies on the very border of an image may be taken for outside or inside, by rounding.
    assert ((tiles - cut).abs() > 1e-3).float().mean() < 1e-3
