"""Tiles: they cover the image, their maps are stitched without seams, and every architecture works on them."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from msad.models.base import AnomalyModel
from msad.models.errors import ModelError
from msad.models.registry import architectures, build
from msad.models.tiling import PIXELS_AT_ONCE, Tiled, TilingConfig, starts, tiled, weights

SMALL = {
    "baseline": {"base_width": 4},
    "multiscale": {"base_width": 4, "depth": 2},
    "multiscale_segmenter": {"base_width": 4, "depth": 2},
    "feature_ensemble": {"width": 8, "bottleneck_channels": 4, "rows": 20, "coarsest_stride": 16},
    "feature_memory": {"rows": 20, "coarsest_stride": 16},
    "feature_pyramid": {"width": 8, "bottleneck_channels": 4},
}


class Toy(AnomalyModel):
    """Gives one map by a function of the image."""

    loss_terms = ("none",)
    default_loss_weights: dict[str, float] = {}  # noqa: RUF012
    map_names = ("map",)

    def __init__(self, function, multiple=1):
        super().__init__()
        self.function, self.size_multiple, self.calls = function, multiple, []

    def _losses(self, clean, corrupted, mask_B1HW, terms):
        raise NotImplementedError

    def _maps(self, image_BCHW):
        self.calls.append(tuple(image_BCHW.shape))
        return {"map": self.function(image_BCHW)}


def convolutions(kernels, strided=False):
    torch.manual_seed(0)
    channels = [3] + [6] * (len(kernels) - 1) + [1]
    layers = [
        nn.Conv2d(a, b, k, padding=k // 2) for (a, b), k in zip(itertools.pairwise(channels), kernels, strict=True)
    ]
    network = nn.Sequential(*layers).eval()
    if not strided:
        return network
    return lambda image: F.interpolate(network(F.avg_pool2d(image, 4)), scale_factor=4)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 8), st.integers(1, 60), st.floats(0, 0.5))
def test_starts_cover_the_side_evenly_with_the_overlap_asked_for(tile, multiple, further, share):
    tile, length = tile * multiple, (tile + further) * multiple
    overlap = int(share * tile)
    places = starts(length, tile, overlap, multiple)
    assert places[0] == 0 and places[-1] == length - tile and not any(place % multiple for place in places)
    steps = [after - before for before, after in itertools.pairwise(places)]
    assert all(multiple <= step <= max(multiple, tile - overlap) for step in steps)
    assert max(steps) - min(steps) <= multiple


@settings(deadline=None, max_examples=40)
@given(st.integers(16, 64), st.integers(1, 200), st.floats(0, 0.5))
def test_weights_add_up_to_one_at_every_pixel(tile, further, share):
    places = starts(tile + further, tile, int(share * tile))
    total = torch.zeros(tile + further)
    for place, row in zip(places, weights(places, tile), strict=True):
        assert row.min() >= 0
        total[place : place + tile] += row
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(96, 96), (100, 70), (48, 131)])
def test_map_of_a_network_that_sees_less_far_than_the_overlap_is_that_of_the_whole_image(size):
    toy = Toy(convolutions([5, 5, 3]))  # it sees 5 pixels far, 11 in all
    image = torch.rand(2, 3, *size)
    whole = toy.anomaly_maps(image)["map"]
    stitched = Tiled(toy, TilingConfig(tile=48, overlap=20)).anomaly_maps(image)["map"]
    torch.testing.assert_close(stitched, whole, atol=1e-5, rtol=0)  # at the borders of the image too


def test_map_without_an_overlap_has_seams():
    toy, image = Toy(convolutions([5, 5, 3])), torch.rand(2, 3, 96, 96)
    apart = Tiled(toy, TilingConfig(tile=48, overlap=0)).anomaly_maps(image)["map"]
    assert (apart - toy.anomaly_maps(image)["map"]).abs().max() > 1e-2


def test_map_of_a_network_with_strides_is_that_of_the_whole_image():
    toy = Toy(
        convolutions([3, 3], strided=True), multiple=4
    )  # 2 places of 4 pixels, and the rest of a place: 11 pixels
    image = torch.rand(1, 3, 152, 96)
    stitched = Tiled(toy, TilingConfig(tile=64, overlap=30)).anomaly_maps(image)["map"]
    wide = Tiled(toy, TilingConfig(tile=96, overlap=48)).anomaly_maps(image)["map"]
    whole = toy.anomaly_maps(image)["map"]
    torch.testing.assert_close(wide, whole, atol=1e-5, rtol=0)
    assert (stitched - whole).abs().mean() < 1e-2


def test_map_of_a_constant_is_constant_and_differing_tiles_fade_into_one_another():
    constant = Tiled(Toy(lambda image: image.mean(dim=1, keepdim=True)), TilingConfig(tile=32, overlap=8))
    image = torch.full((1, 3, 100, 90), 0.3)
    torch.testing.assert_close(constant.anomaly_maps(image)["map"], image[:, :1], atol=1e-6, rtol=0)
    # The worst case: each tile has a level of its own. The steepest place of a raised cosine over half the overlap.
    levels = iter(range(100))
    toy = Toy(lambda tiles: torch.stack([torch.full((1, 32, 32), next(levels) % 2) for _ in tiles]).float())
    stitched = Tiled(toy, TilingConfig(tile=32, overlap=16)).anomaly_maps(torch.zeros(1, 3, 32, 128))["map"]
    assert stitched.min() == 0 and stitched.max() == 1
    assert stitched.diff(dim=3).abs().max() <= torch.pi / 2 / 8


def test_tiles_go_through_the_network_a_bounded_number_at_once():
    toy = Toy(lambda image: image.mean(dim=1, keepdim=True))
    Tiled(toy, TilingConfig(tile=128, overlap=32)).anomaly_maps(torch.zeros(2, 3, 1280, 1280))
    assert len(toy.calls) > 2 and {shape[1:] for shape in toy.calls} == {(3, 128, 128)}
    assert max(shape[0] for shape in toy.calls) == PIXELS_AT_ONCE // 128**2


@pytest.mark.parametrize("name", architectures())
def test_every_architecture_learns_from_tiles_and_maps_whole_images(name):
    inner = build(name, **SMALL.get(name, {}))
    model = tiled(inner, TilingConfig(tile=32, overlap=16)).eval()
    tile = torch.rand(2, 3, 32, 32)
    mask = torch.zeros(2, 1, 32, 32)
    mask[:, :, 4:9, 4:9] = 1
    terms = list(model.default_loss_weights)
    if terms:
        losses = model.losses(tile, (tile + mask).clamp(max=1), mask, terms)
        assert losses.keys() == set(terms) and all(torch.isfinite(loss) for loss in losses.values())
    image = torch.rand(1, 3, 96, 64)
    maps = model.anomaly_maps(image)
    assert maps.keys() == set(model.map_names) == set(inner.map_names)
    assert all(map_B1HW.shape == (1, 1, 96, 64) and map_B1HW.isfinite().all() for map_B1HW in maps.values())
    # The middle of a tile that nothing overlaps is that tile's own map.
    own = inner.anomaly_maps(image[..., :32, :32])
    for map_name, map_B1HW in maps.items():
        torch.testing.assert_close(map_B1HW[..., :16, :16], own[map_name][..., :16, :16], atol=1e-4, rtol=1e-3)


def test_no_tile_is_the_model_itself():
    toy = Toy(torch.relu)
    assert tiled(toy, TilingConfig()) is toy


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"tile": 8}, "at least 16"),
        ({"tile": -32}, "at least 16"),
        ({"tile": 32.0}, "whole numbers"),
        ({"tile": True}, "whole numbers"),
        ({"tile": 32, "overlap": 17}, "half a tile, 16"),
        ({"tile": 32, "overlap": -1}, "half a tile, 16"),
    ],
)
def test_tiling_that_cannot_be_is_refused(values, words):
    with pytest.raises(ModelError, match=words):
        TilingConfig(**values)


def test_tile_or_image_that_does_not_suit_the_network_is_refused():
    with pytest.raises(ModelError, match="divisible by 4"):
        Tiled(Toy(torch.relu, multiple=4), TilingConfig(tile=30))
    with pytest.raises(ModelError, match="divisible by 4"):
        Tiled(Toy(torch.relu, multiple=4), TilingConfig(tile=32)).anomaly_maps(torch.zeros(1, 3, 66, 64))
    with pytest.raises(ModelError, match="do not fit"):
        Tiled(Toy(torch.relu), TilingConfig(tile=32)).anomaly_maps(torch.zeros(1, 3, 31, 64))
