from __future__ import annotations

import numpy as np
import torch
from skimage import data

from msad.models.synthesis.nuisances import NOISE, changed_once, nuisances


def photographs(count=18, light=0.0):
    """Crops of a photograph, each brighter or darker by a random factor."""
    rng = np.random.default_rng(0)
    crops = [data.astronaut()[5 * i : 5 * i + 64, 100 + i : 148 + i] for i in range(count)]
    return np.stack([(crop * rng.uniform(0.7 - light, 0.7 + light)).astype(np.uint8) for crop in crops])


def test_light_changes_as_far_as_it_does_among_the_good_images():
    assert set(nuisances(photographs())) == set(nuisances(photographs(light=0.2)))
    image = torch.full((2, 3, 64, 48), 0.5)
    factors = {}
    for light in (0.0, 0.2):
        good = photographs(light=light)
        deviation = np.log(good.mean(axis=(1, 2, 3))).std()
        made = nuisances(good, margin=2.0)["brightness"](image)
        factors[light] = (made[0] / 0.5).log().mean().item()
        np.testing.assert_allclose([factors[light], -(made[1] / 0.5).log().mean().item()], 2 * deviation, rtol=1e-2)
    assert factors[0.2] > 2 * factors[0.0]


def test_each_change_is_small_and_stays_in_range():
    good = photographs()
    image = torch.from_numpy(good).permute(0, 3, 1, 2).float() / 255
    for name, change in nuisances(good).items():
        made = change(image)
        assert made.shape == image.shape and made.min() >= 0 and made.max() <= 1, name
        assert 0 < (made - image).abs().mean() < 0.2, name
    noisy = nuisances(good)[f"noise of {NOISE:g} of 255"](torch.full((4, 3, 64, 64), 0.5))
    assert abs((noisy * 255).std().item() - NOISE) < 0.05


def test_changed_once_takes_the_changes_by_turns_and_repeats():
    good = photographs(light=0.2)
    made, again = changed_once(good, good), changed_once(good, good)
    np.testing.assert_array_equal(made, again)
    assert made.dtype == np.uint8 and made.shape == good.shape and (made != good).any(axis=(1, 2, 3)).mean() > 0.9
    changes = list(nuisances(good).values())
    image = torch.from_numpy(good).permute(0, 3, 1, 2).float() / 255
    for index in range(len(good)):
        # The second time it is its turn a change goes the other way.
        way = image[index].expand(2, -1, -1, -1)
        wanted = changes[index % len(changes)](way)[index // len(changes)]
        np.testing.assert_array_equal(made[index], (wanted * 255).round().byte().permute(1, 2, 0).numpy())


def test_images_of_one_brightness_are_changed_by_the_others_alone():
    flat = np.full((4, 32, 32, 3), 128, np.uint8)
    made = nuisances(flat)["brightness"](torch.full((2, 3, 32, 32), 0.5))
    torch.testing.assert_close(made, torch.full((2, 3, 32, 32), 0.5))
