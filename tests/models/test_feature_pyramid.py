from __future__ import annotations

import pytest
import torch

from msad.models.backbones import untrained
from msad.models.errors import ModelError
from msad.models.registry import build

SMALL = {"width": 8, "bottleneck_channels": 4}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build("feature_pyramid", **SMALL).eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_encoded_images_give_the_same_maps_and_losses(model, images):
    encoded, mask = model.encode(images), torch.zeros(6, 1, 64, 64)
    for name, map_B1HW in model.anomaly_maps(images).items():
        assert torch.equal(map_B1HW, model.anomaly_maps(encoded)[name])
    for name, value in model.losses(images, images, mask).items():
        torch.testing.assert_close(value, model.losses(encoded, encoded, mask)[name])


def test_adapt_standardises_every_channel_of_every_stage(images):
    model = build("feature_pyramid", **SMALL)
    model.adapt(model.encode(part) for part in images.split(2))
    for features in model.standardised(model.encode(images)):
        assert features.mean(dim=(0, 2, 3)).abs().max() < 1e-3
        deviation = features.std(dim=(0, 2, 3), correction=0)
        assert ((deviation - 1).abs() < 0.05).float().mean() > 0.9  # but for channels that hardly ever speak
        assert deviation.max() < 1.01


def test_adapt_does_not_depend_on_the_batches(images):
    one, other = (build("feature_pyramid", **SMALL) for _ in range(2))
    one.adapt([one.encode(images)])
    other.adapt(other.encode(part) for part in images.split(4))
    for stage in range(3):
        torch.testing.assert_close(getattr(one, f"mean{stage}"), getattr(other, f"mean{stage}"))
        torch.testing.assert_close(getattr(one, f"scale{stage}"), getattr(other, f"scale{stage}"))


def test_state_of_a_trained_model_fits_one_without_weights(model, images):
    """A bundle brings the backbone's weights along: nothing is downloaded to load it."""
    with untrained():
        other = build("feature_pyramid", **SMALL)
    assert not torch.equal(other.encode(images)[0], model.encode(images)[0])
    other.load_state_dict(model.state_dict())
    for name, map_B1HW in other.eval().anomaly_maps(images).items():
        assert torch.equal(map_B1HW, model.anomaly_maps(images)[name])


def test_mask_terms_take_an_area_share_at_a_stage_s_size(model, images):
    mask = torch.zeros(6, 1, 64, 64)
    mask[:, :, 10:30, 5:40] = 1
    whole = model.losses(images, images, mask, terms=["focal", "dice"])
    share = torch.nn.functional.avg_pool2d(mask, 4)
    for name, value in model.losses(images, images, share, terms=["focal", "dice"]).items():
        torch.testing.assert_close(value, whole[name])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"width": 10}, "width is 10; it must be a multiple of 4"),
        ({"bottleneck_channels": 0}, "bottleneck_channels is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"backbone": "resnet19"}, "unknown backbone 'resnet19'"),
    ],
)
def test_build_values_out_of_range(parameters, message):
    with pytest.raises(ModelError, match=message):
        build("feature_pyramid", **parameters)


def test_losses_images_that_do_not_fit(model):
    with pytest.raises(ModelError, match="divisible by 16"):
        model.losses(torch.rand(1, 3, 40, 64), torch.rand(1, 3, 40, 64), torch.zeros(1, 1, 40, 64))
