"""The check that a user's own architecture goes through: what keeps to the contract passes, each breach is named."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import nn

from msad.models.base import AnomalyModel
from msad.models.contract import contract_problems
from msad.models.registry import architectures, build, use


class Kept(AnomalyModel):
    loss_terms = ("l1",)
    default_loss_weights: ClassVar = {"l1": 1.0}
    map_names = ("difference",)

    def __init__(self):
        super().__init__()
        self.network = nn.Conv2d(3, 3, 1)

    def _losses(self, clean, corrupted, mask, terms):
        return {"l1": (self.network(corrupted) - clean).abs().mean()}

    def _maps(self, image):
        return {"difference": (self.network(image) - image).abs().mean(dim=1, keepdim=True)}


def breach(method, result):
    return type("Breach", (Kept,), {method: lambda self, *arguments: result(self, *arguments)})()


@pytest.mark.parametrize("name", architectures())
def test_contract_is_kept_by_every_architecture(name):
    ours = {
        "feature_memory": {"rows": 20},
        "feature_pyramid": {"width": 8},
        "feature_ensemble": {"width": 8, "rows": 20},
    }
    small = ours.get(name, {"base_width": 4, "depth": 2})
    assert contract_problems(build(name, **small), image_size=32) == []
    assert contract_problems(build(name, **small), image_size=32, elongated=True) == []


def test_contract_is_kept_by_the_documented_example(own):
    assert contract_problems(use("my_detector:MyDetector")(width=8)) == []


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (breach("_losses", lambda self, clean, *_: {"l1": (clean - 1).abs()}), "loss 'l1' has shape (3, 3, 64, 64)"),
        (breach("_losses", lambda self, clean, *_: {"l1": clean.mean() / 0}), "has the value inf; it must be a finite"),
        (breach("_losses", lambda self, clean, *_: {"l1": clean.mean()}), "have no gradient"),
        (breach("_losses", lambda self, *_: {}), "losses returns the terms []; asked for were ['l1']"),
        (breach("_maps", lambda self, image: {"other": image[:, :1]}), "returns other; map_names says difference"),
        (breach("_maps", lambda self, image: {"difference": image}), "B×1×H×W = (3, 1, 64, 64); it is (3, 3, 64, 64)"),
        (
            breach("_maps", lambda self, image: {"difference": image[:, :1] - image.mean()}),
            "depends on the other images of its batch",
        ),
        (breach("_maps", lambda self, image: image.no_such_thing), "it fails on images of 64×64 pixels: Attribute"),
        (type("Breach", (Kept,), {"default_loss_weights": {"l2": 1.0}})(), "name l2, which loss_terms does not"),
    ],
)
def test_contract_breach_is_named(model, problem):
    problems = contract_problems(model)
    assert len(problems) == 1 and problem in problems[0], problems


def test_contract_rounds_the_size_up():
    model = Kept()
    model.size_multiple = 48
    seen = []
    model.network.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[-1]))
    assert contract_problems(model) == []
    assert set(seen) == {96}
    assert torch.is_grad_enabled()
