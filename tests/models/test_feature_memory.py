from __future__ import annotations

import numpy as np
import pytest
import torch

from msad.models.backbones import untrained
from msad.models.errors import ModelError
from msad.models.registry import build
from msad.models.tiling import TilingConfig, tiled

SMALL = {"rows": 30}


@pytest.fixture(scope="module")
def images():
    ramp = torch.linspace(0.2, 0.8, 64)
    noise = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    return 0.9 * (ramp * ramp.view(-1, 1)).expand(6, 3, 64, 64) + 0.1 * noise


@pytest.fixture(scope="module")
def model(images):
    made = build("feature_memory", **SMALL).eval()
    made.adapt(made.encode(part) for part in images.split(2))
    return made


def test_a_square_that_no_good_image_has_is_found_where_it_is(model, images):
    changed = images.clone()
    changed[:3, :, 8:24, 32:48] = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    maps = model.anomaly_maps(changed)
    assert maps["memory"][:3, :, 8:24, 32:48].mean() > 2 * maps["memory"][3:].mean()
    assert maps["memory"].shape == (6, 1, 64, 64)


def test_encoded_images_give_the_same_maps(model, images):
    encoded = model.encode(images)
    for name, map_B1HW in model.anomaly_maps(images).items():
        assert torch.equal(map_B1HW, model.anomaly_maps(encoded)[name])


def test_adapt_does_not_depend_on_the_batches(model, images):
    other = build("feature_memory", **SMALL).eval()
    other.adapt([other.encode(images)])
    for name, map_B1HW in other.anomaly_maps(images + 0.1).items():
        torch.testing.assert_close(map_B1HW, model.anomaly_maps(images + 0.1)[name], atol=1e-3, rtol=1e-3)


def test_adapt_keeps_the_rows_asked_for_in_half_precision(model):
    assert model.memory.bank_RC.shape == (30, 40 + 112 + 320) and model.memory.bank_RC.dtype == torch.float16
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_without_an_image_is_what_the_others_alone_would_have_given(images):
    odd = images.clone()
    odd[1, :, :32] = torch.rand(3, 32, 64, generator=torch.Generator().manual_seed(3))
    whole = build("feature_memory", rows=10_000).eval()
    whole.adapt(whole.encode(part) for part in (*odd.split(4), *odd.flip(3).split(4)))  # two views
    without = whole.without(np.array([1]), len(odd))
    assert whole.anomaly_maps(odd)["memory"].amax() < 0.1
    maps = without.anomaly_maps(odd)["memory"]
    assert maps[1].amin() > 0.5 and maps[[0, 2, 3, 4, 5]].amax() < 0.1  # both views of the others are there


def test_a_place_that_was_remembered_has_no_distance(images):
    model = build("feature_memory", rows=1000).eval()  # more than there are places
    model.adapt([model.encode(images)])
    assert model.anomaly_maps(images)["memory"].max() < 0.01  # but for half precision


def test_stages_that_are_remembered(images):
    model = build("feature_memory", finest_stride=8, coarsest_stride=16, **SMALL)
    assert [f.shape[-1] for f in model.encode(images)] == [8, 4] and model.size_multiple == 16
    one = build("feature_memory", finest_stride=32, coarsest_stride=32, **SMALL)
    assert [f.shape[-1] for f in one.encode(images)] == [2]


def test_light_that_is_levelled_says_nothing(images):
    maps = {}
    for light in ("levelled", "kept"):
        model = build("feature_memory", light=light, **SMALL).eval()
        model.adapt([model.encode(images)])
        plain, darker = (model.anomaly_maps(shown)["memory"] for shown in (images, 0.8 * images))
        maps[light] = (darker - plain).abs().mean() / plain.mean()
    assert maps["levelled"] < 1e-3 < 0.1 < maps["kept"]
    assert all(torch.isfinite(f).all() for f in build("feature_memory", **SMALL).encode(torch.zeros(1, 3, 64, 64)))


def test_state_of_a_trained_model_fits_one_without_weights(model, images):
    """A bundle brings the backbone's weights and the bank along."""
    with untrained():
        other = build("feature_memory", **SMALL)
    other.load_state_dict(model.state_dict())
    for name, map_B1HW in other.eval().anomaly_maps(images).items():
        assert torch.equal(map_B1HW, model.anomaly_maps(images)[name])


def test_tiles_are_remembered_and_looked_at(images):
    model = tiled(build("feature_memory", rows=30), TilingConfig(tile=32, overlap=8)).eval()
    model.adapt([model.encode(images[..., :32, :32])])
    assert model.anomaly_maps(images)["memory"].shape == (6, 1, 64, 64)


def test_losses_are_refused(model, images):
    with pytest.raises(ModelError, match="has no loss term: it is not trained by steps"):
        model.losses(images, images, images[:, :1])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"finest_stride": 12}, "finest_stride is 12; it must be one of 4, 8, 16, 32"),
        ({"finest_stride": 32, "coarsest_stride": 16}, "finest_stride 32 is above coarsest_stride 16"),
        ({"rows": 0}, "rows is 0; it must be a whole number from 1 to 100000"),
        ({"neighbourhood": 2}, "neighbourhood is 2; it must be odd"),
        ({"neighbourhood": -1}, "neighbourhood is -1; it must be odd"),
        ({"neighbours": 0.5}, "neighbours is 0.5"),
        ({"coarsest_share": 0}, "coarsest_share is 0; it must be above 0 and at most 1"),
        ({"light": "level"}, "light is 'level'; did you mean 'levelled'"),
        ({"backbone": "resnet19"}, "unknown backbone 'resnet19'"),
    ],
)
def test_build_values_out_of_range(parameters, message):
    with pytest.raises(ModelError, match=message):
        build("feature_memory", **parameters)
