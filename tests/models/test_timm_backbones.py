"""timm's networks as backbones, with random weights: nothing is downloaded, whatever machine this runs on."""

from __future__ import annotations

import sys

import pytest
import safetensors.torch
import torch

from msad.models.backbones import load_backbone, source, terms, untrained
from msad.models.errors import ModelError
from msad.models.registry import build
from msad.models.timm_backbones import STAGES

timm = pytest.importorskip("timm", reason="the extra timm is not installed")
SMALL = {
    "feature_ensemble": {"width": 8, "bottleneck_channels": 4, "rows": 30},
    "feature_memory": {"rows": 30},
    "feature_pyramid": {"width": 8, "bottleneck_channels": 4},
}
DINOV2, DINOV3 = "timm:vit_small_patch14_dinov2.lvd142m", "timm:vit_small_patch16_dinov3.lvd1689m"


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """A folder in the place of the hub's cache, and no way to the hub."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_convolutional_networks_give_their_stages(name, images):
    with untrained():
        network = load_backbone(f"timm:{name}", STAGES)
    assert network.strides == STAGES and not any(p.requires_grad for p in network.parameters())
    shapes = [f.shape[-2:] for f in network(images)]
    assert shapes == [(64 // stride, 96 // stride) for stride in STAGES]


def test_network_is_cut_behind_the_last_stage_asked_for():
    with untrained():
        whole, part = (load_backbone("timm:test_resnet", strides) for strides in (STAGES, (4, 8)))
    assert sum(p.numel() for p in part.parameters()) < sum(p.numel() for p in whole.parameters()) / 2


def test_vision_transformer_gives_the_ends_of_its_quarters(images):
    with untrained():
        network = load_backbone("timm:test_vit2", STAGES)
    found = network(images)
    assert network.strides == (16,) * 4 and [f.shape for f in found] == [(2, 64, 4, 6)] * 4
    vit = network.stages.transformer
    assert len(vit.blocks) == 8
    seen = (images - network.mean) / network.std
    for feature, block in zip(found, (1, 3, 5, 7), strict=True):
        (expected,) = vit.forward_intermediates(seen, [block], norm=True, intermediates_only=True)
        assert torch.equal(feature, expected)


@pytest.mark.parametrize(("name", "patch"), [(DINOV2, 14), (DINOV3, 16)])
def test_dinos_take_images_of_any_size_that_their_patches_fit(name, patch):
    with untrained():
        model = build("feature_memory", backbone=name, rows=30)
    assert model.size_multiple == patch
    encoded = model.encode(torch.rand(1, 3, 3 * patch, 5 * patch))
    assert [f.shape for f in encoded] == [(1, 384, 3, 5)] * 3
    with pytest.raises(ModelError, match=f"divisible by {patch}; the nearest size is {19 * patch}×{20 * patch}"):
        model.encode(torch.rand(1, 3, 19 * patch + 1, 20 * patch - 1))


@pytest.mark.parametrize("backbone", ["timm:test_resnet", "timm:test_vit"])
@pytest.mark.parametrize("name", SMALL)
def test_state_of_a_model_restores_it_without_weights(name, backbone, images, offline):
    with untrained():
        model, other = (build(name, backbone=backbone, **SMALL[name]).eval() for _ in range(2))
    model.adapt([model.encode(images)])
    maps = model.anomaly_maps(images)
    other.load_state_dict(model.state_dict())
    for map_name, map_B1HW in other.anomaly_maps(images).items():
        assert map_B1HW.shape == (2, 1, 64, 96) and torch.equal(map_B1HW, maps[map_name])


def test_normalisation_is_the_network_s_own_and_part_of_the_state():
    with untrained():
        model = build("feature_memory", backbone="timm:vit_tiny_patch16_224.augreg_in21k", rows=30)
    assert model.backbone.mean.flatten().tolist() == model.backbone.std.flatten().tolist() == [0.5] * 3
    assert {"backbone.mean", "backbone.std"} <= set(model.state_dict())


def test_weights_in_the_hub_s_cache_are_used_without_a_connection(offline):
    torch.manual_seed(1)
    weights = timm.create_model("test_vit").state_dict()
    folder = offline / "models--timm--test_vit.r160_in1k"
    (folder / "snapshots" / "0").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0")
    safetensors.torch.save_file(weights, folder / "snapshots" / "0" / "model.safetensors")
    network = load_backbone("timm:test_vit")
    assert torch.equal(network.stages.transformer.patch_embed.proj.weight, weights["patch_embed.proj.weight"])


def test_weights_that_cannot_be_had(offline):
    with pytest.raises(ModelError, match=r"'timm:test_vit' could not be had.*HF_HOME"):
        load_backbone("timm:test_vit")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet19", "has no network 'resnet19'; did you mean 'resnet18'"),
        ("resnet18.a9_in1k", "has no weights 'resnet18.a9_in1k'; it has resnet18.a1_in1k, "),
        ("hf-hub:somebody/something", "has no network 'hf-hub:somebody/something'"),
        ("local-dir:/tmp", "has no network 'local-dir:/tmp'"),
        ("cait_xxs24_224", "takes images of one size alone"),
        ("mixer_b16_224", "gives no stages"),
        ("test_mambaout", "channels × height × width"),
    ],
)
def test_names_that_cannot_be_used(name, message):
    with untrained(), pytest.raises(ModelError, match=message):
        load_backbone(f"timm:{name}")


def test_network_that_nobody_has_trained():
    with pytest.raises(ModelError, match="no weights of 'vit_small_patch16_36x1_224'"):
        load_backbone("timm:vit_small_patch16_36x1_224")


def test_strides_that_a_network_does_not_have():
    with untrained(), pytest.raises(ModelError, match=r"'timm:test_vit' asked for; it has \(4, 8, 16, 32\)"):
        load_backbone("timm:test_vit", (8, 4))


def test_timm_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r"needs timm, which is not installed here.*pip install 'msad\[timm\]'"):
        load_backbone("timm:resnet18")


def test_terms_and_source_name_licence_and_weights():
    assert terms(DINOV3) == "dinov3-license, huggingface.co/timm/vit_small_patch16_dinov3.lvd1689m"
    assert source("timm:resnet18") == f"timm:resnet18.a1_in1k of timm {timm.__version__}"
    assert source("efficientnet_lite0") == "efficientnet_lite0"
