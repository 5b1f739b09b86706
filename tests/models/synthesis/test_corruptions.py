from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch.nn import functional as F

from msad.models.errors import ModelError
from msad.models.synthesis.corruptions import SMALLEST_CHANGE, CorruptionConfig, Corruptor, _grown, noise_bank
from msad.models.synthesis.noise import perlin_bank

ROOT = Path(os.environ.get("MSAD_DATA", Path(__file__).parents[3].parent / "shared/data/industrial"))
FAMILIES = ("stain", "perlin", "cutpaste")


def only(family, **options):
    return CorruptionConfig(**{name: float(name == family) for name in FAMILIES}, **options)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def tensor(images):
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def nearby(change_B1HW):
    """The largest change within 2 pixels."""
    return torch.nn.functional.max_pool2d(change_B1HW, 5, stride=1, padding=2)


def parts_on_a_table(count=8):
    """Dark squares left of the middle of a light table, uint8."""
    images = np.full((count, 64, 96, 3), 220, dtype=np.uint8)
    images += np.random.default_rng(0).integers(0, 5, images.shape, dtype=np.uint8)
    images[:, 16:48, 10:42] = 60
    return images


@pytest.fixture(scope="module")
def photographs():
    """16 different 64×96 crops of a colour photograph."""
    image = data.astronaut()
    return tensor([image[y : y + 64, x : x + 96] for y in (0, 100, 200, 300) for x in (0, 100, 200, 300)])


@pytest.fixture(scope="module")
def textures():
    return tensor([np.stack([getattr(data, name)()[:128, :128]] * 3, axis=-1) for name in ("brick", "grass", "gravel")])


@pytest.mark.parametrize("family", FAMILIES)
def test_corruptor_mask_marks_exactly_what_changed(family, photographs, textures):
    corrupted, mask = Corruptor(only(family, probability=1.0), textures)(photographs, generator())
    change = (corrupted - photographs).abs().amax(dim=1, keepdim=True)
    assert mask.shape == (16, 1, 64, 96) and set(mask.unique().tolist()) == {0.0, 1.0}
    assert (change[mask == 0] == 0).all() and (nearby(change)[mask == 1] > SMALLEST_CHANGE).all()
    assert (change[mask == 1] > SMALLEST_CHANGE).float().mean() > 0.85
    assert corrupted.min() >= 0 and corrupted.max() <= 1 and corrupted.dtype == torch.float32
    assert (mask.mean(dim=(1, 2, 3)) > 0).float().mean() > 0.85  # a pasted place may happen to look the same
    assert mask.mean(dim=(1, 2, 3)).max() < 0.25


@pytest.mark.parametrize("size", [(1, 1), (3, 9), (37, 41)])
def test_grown_mask_is_what_pooling_maxima_gives(size):
    mask = torch.rand(4, 1, *size, generator=torch.Generator().manual_seed(0)) > 0.95
    mask[0, 0, -1, -1] = mask[1, 0, 0, 0] = True
    assert torch.equal(_grown(mask).float(), F.max_pool2d(mask.float(), 5, stride=1, padding=2))


def test_corruptor_same_generator_same_corruption(photographs, textures):
    first, second = (Corruptor(CorruptionConfig(), textures)(photographs, generator(5)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], Corruptor(CorruptionConfig(), textures)(photographs, generator(6))[0])


@pytest.mark.parametrize("part", [slice(0, 2), slice(2, None)])
def test_part_of_a_batch_is_corrupted_as_in_all_of_it(photographs, textures, part):
    parts = parts_on_a_table()
    for good, batch in ((None, photographs), (parts, tensor(parts))):
        corrupt = Corruptor(CorruptionConfig(probability=1.0), textures, good)
        whole, of_part = corrupt(batch, generator()), corrupt(batch, generator(), part=part)
        for one, other in zip(whole, of_part, strict=True):
            assert torch.equal(one[part], other)


def test_corruptor_does_not_depend_on_earlier_calls(photographs):
    used, fresh = Corruptor(CorruptionConfig()), Corruptor(CorruptionConfig())
    used(photographs[:2], generator(1))
    assert torch.equal(used(photographs, generator(2))[0], fresh(photographs, generator(2))[0])


def test_corruptor_does_not_change_its_input_nor_global_randomness(photographs):
    before, state = photographs.clone(), torch.random.get_rng_state()
    Corruptor(CorruptionConfig(probability=1.0))(photographs, generator())
    assert torch.equal(photographs, before) and torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_corruptor_probability_is_the_share_of_changed_images(probability, photographs):
    corruptor, source = Corruptor(only("stain", probability=probability)), generator()
    shares = [(corruptor(photographs, source)[1].amax(dim=(1, 2, 3)) > 0).float().mean() for _ in range(20)]
    assert torch.stack(shares).mean().item() == pytest.approx(probability, abs=0.08)


def test_corruptor_strength_makes_defects_plainer(photographs, textures):
    def mean_change(strength):
        config = CorruptionConfig(probability=1.0, strength=strength)
        corrupted, mask = Corruptor(config, textures)(photographs, generator())
        return ((corrupted - photographs).abs().mean(1, keepdim=True) * mask).sum() / mask.sum()

    assert mean_change(0.3) < mean_change(0.6) < mean_change(1.0)


def test_corruptor_grades_the_opacity(photographs):
    corruptor, source = Corruptor(only("stain", probability=1.0)), generator()
    changes = []
    for _ in range(10):
        corrupted, _ = corruptor(photographs, source)
        changes.append((corrupted - photographs).abs().amax(dim=(1, 2, 3)))
    assert torch.cat(changes).quantile(0.1) < 0.25 and torch.cat(changes).quantile(0.9) > 0.5


def test_corruptor_family_weights_are_respected(photographs):
    stains, patches = (Corruptor(only(family, probability=1.0)) for family in ("stain", "cutpaste"))
    mixed = Corruptor(CorruptionConfig(probability=1.0, perlin=0.0))
    for image in range(16):
        batch = photographs[image : image + 1]
        result = mixed(batch, generator(image))[0]
        assert any(torch.equal(result, one(batch, generator(image))[0]) for one in (stains, patches))


def test_corruptor_cutpaste_is_a_rectangle_of_other_pixels():
    steps = torch.arange(64 * 64).view(1, 1, 64, 64) / (64 * 64)
    image = torch.cat([steps, 1 - steps, steps.flip(-1)], dim=1)
    _, mask = Corruptor(only("cutpaste", probability=1.0))(image, generator(3))
    rows, columns = mask[0, 0].any(dim=1), mask[0, 0].any(dim=0)
    assert mask.sum() > 0.9 * rows.sum() * columns.sum()


def test_corruptor_grey_images_stay_grey(photographs, textures):
    grey = photographs.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    coloured = textures * torch.tensor([1.0, 0.5, 0.2]).view(1, 3, 1, 1)
    corrupted, mask = Corruptor(CorruptionConfig(probability=1.0), coloured)(grey, generator())
    assert mask.any() and (corrupted.amax(dim=1) - corrupted.amin(dim=1)).max() < 1e-6


def test_corruptor_single_image_without_textures(photographs):
    corrupted, mask = Corruptor(CorruptionConfig(probability=1.0))(photographs[:1], generator(2))
    assert corrupted.shape == (1, 3, 64, 96) and torch.isfinite(corrupted).all() and mask.any()


def test_corruptor_defects_lie_on_the_product_where_the_background_is_empty():
    good_NHWC = parts_on_a_table()
    images = tensor(good_NHWC)
    on_product = torch.zeros(64, 96, dtype=torch.bool)
    on_product[14:50, 8:44] = True  # a cell of the grid around it
    shares = {}
    for good in (good_NHWC, None):
        corruptor, source = Corruptor(CorruptionConfig(probability=1.0), good=good), generator()
        masks = torch.cat([corruptor(images, source)[1] for _ in range(20)])
        shares[good is None] = (masks * on_product).sum(dim=(1, 2, 3)) / masks.sum(dim=(1, 2, 3)).clamp(min=1)
        assert (masks.sum(dim=(1, 2, 3)) > 0).float().mean() > 0.85
    assert (shares[False] > 0.5).float().mean() > 0.75 > 0.5 > (shares[True] > 0.5).float().mean()
    assert (shares[False] == 0).any()  # the table is not spared altogether


def test_corruptor_finds_the_product_in_another_light():
    good_NHWC = parts_on_a_table()
    dimmed = tensor(good_NHWC) * 0.9
    corruptor, source = Corruptor(CorruptionConfig(probability=1.0), good=good_NHWC), generator()
    masks = torch.cat([corruptor(dimmed, source)[1] for _ in range(20)])
    assert (masks[:, 0, 16:48, 10:42].amax(dim=(1, 2)) > 0).float().mean() > 0.75


def test_corruptor_a_texture_gets_defects_everywhere(photographs, textures):
    good_NHWC = (textures.permute(0, 2, 3, 1) * 255).byte().numpy()
    corruptor, source = Corruptor(CorruptionConfig(probability=1.0), good=good_NHWC), generator()
    masks = torch.cat([corruptor(textures, source)[1] for _ in range(100)])
    quarters = masks.mean(dim=(0, 1)).view(2, 64, 2, 64).mean(dim=(1, 3))
    assert quarters.min() > 0.7 * quarters.max()


def test_corruptor_perlin_masks_are_single_spots_and_many(photographs, textures):
    from scipy import ndimage

    corruptor, source = Corruptor(only("perlin", probability=1.0), textures), generator()
    masks = torch.cat([corruptor(photographs, source)[1] for _ in range(4)])
    spots = [ndimage.label(mask[0])[1] for mask in masks.numpy()]
    assert sum(count == 1 for count in spots) > 5 and sum(count > 3 for count in spots) > 5


@pytest.mark.skipif(not ROOT.exists(), reason="the real images are not here")
@pytest.mark.parametrize("category", ["bottle", "magnetic_tile"])
def test_corruptor_on_real_parts_changes_nearly_every_image(category):
    paths = sorted((ROOT / category / "train/good").iterdir())[:8]
    images = tensor([np.array(Image.open(path).convert("RGB").resize((64, 64))) for path in paths])
    _, mask = Corruptor(CorruptionConfig(probability=1.0))(images.repeat(4, 1, 1, 1), generator())
    assert (mask.mean(dim=(1, 2, 3)) > 0.001).float().mean() > 0.7


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"probability": 1.5}, "probability is 1.5"),
        ({"strength": 0.0}, "strength is 0.0"),
        ({"stain": -1.0}, "stain, perlin, cutpaste"),
        ({"stain": 0.0, "perlin": 0.0, "cutpaste": 0.0}, "one above 0"),
        ({"stain": float("nan")}, "corruption"),
        ({"probability": 2.0, "strength": 2.0}, "strength is 2.0"),
    ],
)
def test_corruption_config_out_of_range(values, message):
    with pytest.raises(ModelError) as caught:
        CorruptionConfig(**values)
    assert message in str(caught.value)


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 1, 8, 8), (3, 8, 8)])
def test_corruptor_textures_of_a_wrong_shape(shape):
    with pytest.raises(ModelError, match="textures of shape"):
        Corruptor(CorruptionConfig(), torch.zeros(shape))


def test_perlin_bank_thresholds_mark_exact_areas():
    bank = perlin_bank(4, 32, 48, seed=1)
    assert bank.shape == (4, 1, 32, 48)
    for area in (0.005, 0.1, 0.5):
        assert ((bank >= 1 - area).flatten(1).float().mean(1) - area).abs().max() <= 1 / (32 * 48)


def test_perlin_bank_same_seed_same_fields():
    assert torch.equal(perlin_bank(3, 32, 32, seed=4), perlin_bank(3, 32, 32, seed=4))
    assert not torch.equal(perlin_bank(3, 32, 32, seed=4), perlin_bank(3, 32, 32, seed=5))


def test_perlin_bank_tiles_without_a_seam():
    bank = perlin_bank(8, 64, 64)
    seam, inside = (
        (bank[..., 0, :] - bank[..., -1, :]).abs().mean(),
        (bank[..., 1:, :] - bank[..., :-1, :]).abs().mean(),
    )
    assert seam < 2 * inside


@pytest.mark.parametrize("size", [(64, 96), (40, 40)])
def test_corruptor_bytes_and_noise_made_before_give_the_same_copies(size, photographs):
    textures = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 3, *size), dtype=np.uint8))
    config = CorruptionConfig(probability=1.0)
    floats = Corruptor(config, textures.float() / 255)(photographs, generator(3))
    made_before = Corruptor(config, textures, noise_N1HW=noise_bank(64, 96))(photographs, generator(3))
    assert all(torch.equal(*pair) for pair in zip(floats, made_before, strict=True))
