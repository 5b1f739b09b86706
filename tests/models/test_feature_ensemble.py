"""A memory and an autoencoder on one network are what each would be by itself."""

from __future__ import annotations

import pytest
import torch

from msad.models.errors import ModelError
from msad.models.registry import build
from tests.bolts import SIDE, bolts

SMALL = {"width": 8, "bottleneck_channels": 4}
REMEMBERED = {"rows": 40, "neighbours": 2}


@pytest.fixture(scope="module")
def textures():
    ramp = torch.linspace(0.2, 0.8, 64)
    noise = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    return 0.9 * (ramp * ramp.view(-1, 1)).expand(6, 3, 64, 64) + 0.1 * noise


def ensemble_and_parts(images_B3HW, good_NHWC=None):
    models = [
        build("feature_ensemble", **SMALL, **REMEMBERED),
        build("feature_memory", **REMEMBERED),
        build("feature_pyramid", **SMALL),
    ]
    models[2].load_state_dict(models[0].pyramid.state_dict(), strict=False)  # but for the network, which has no choice
    for model in models:
        if good_NHWC is not None:
            model.meet(good_NHWC)
        model.eval().adapt([model.encode(part) for part in images_B3HW.split(4)])
    return models


def assert_maps_are_those_of_the_parts(ensemble, memory, pyramid, images_B3HW):
    maps = ensemble.anomaly_maps(images_B3HW)
    assert tuple(maps) == ensemble.map_names
    for name, expected in (memory.anomaly_maps(images_B3HW) | pyramid.anomaly_maps(images_B3HW)).items():
        torch.testing.assert_close(maps[name], expected)


def test_maps_are_those_of_a_memory_and_a_pyramid_by_themselves(textures):
    ensemble, memory, pyramid = ensemble_and_parts(textures)
    assert_maps_are_those_of_the_parts(ensemble, memory, pyramid, textures.flip(3))
    assert not any("backbone" in name for part in (ensemble.pyramid, ensemble.memory) for name in part.state_dict())


def test_of_parts_at_any_angle_the_memory_alone_sees_them_straightened():
    good_NHWC = bolts(range(0, 180, 15))
    images = torch.from_numpy(good_NHWC).permute(0, 3, 1, 2).float() / 255
    ensemble, memory, pyramid = ensemble_and_parts(images, good_NHWC)
    assert ensemble.memory.straightens and images.shape[-1] == SIDE
    assert ensemble.fixed_scoring["calibration"]["memory"] == "none"
    assert_maps_are_those_of_the_parts(ensemble, memory, pyramid, images[:3].flip(2))
    torch.testing.assert_close(
        ensemble.losses(images[:2], images[:2], torch.zeros(2, 1, SIDE, SIDE)),
        pyramid.losses(images[:2], images[:2], torch.zeros(2, 1, SIDE, SIDE)),
    )


def test_a_memory_coarser_than_its_network_is_refused():
    with pytest.raises(ModelError, match="coarsest_stride is 8; it must be 16 or 32"):
        build("feature_ensemble", coarsest_stride=8)
