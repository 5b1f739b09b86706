"""Any detector of anomalib as an architecture: `anomalib:Patchcore`, `anomalib:Draem`, ...

anomalib (Akcay et al., arXiv 2202.08341; Apache-2.0; extra `peers`) builds and trains the model by its own
engine and recipe; what comes out, its anomaly map and its image score, is scored and measured as every other
architecture's. Nothing of anomalib is imported before a peer is asked for.

Tensors are named by shape: B images, C channels, H×W pixels, N images of a set.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import inspect
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msad.models.backbones import LITES, is_untrained, packaged_weights
from msad.models.base import AfterEpoch, SelfTraining
from msad.models.errors import ModelError, did_you_mean
from msad.models.scorer import IMAGE_SCORE

PREFIX = "anomalib:"
NOT_PARAMETERS = ("pre_processor", "post_processor", "evaluator", "visualizer")
TEXTURE_FOLDERS = {"Draem": "dtd_dir", "Glass": "anomaly_source_path"}
"""Peers that need a folder of textures to be built; a trained one needs it no more."""

_USUAL_SIZE = (256, 256)
_ADVICE = (
    "its weights or its data could not be had: run it once where there is internet, or set model/pre_trained=false to "
    "train from random weights"
)


class AnomalibPeer(SelfTraining):
    """A detector of anomalib; the classes made of it by `peer_class` differ in `peer` alone.

    Parameters
    ----------
    image_size
        Side in pixels of the images, or `HEIGHTxWIDTH` as text, for a peer that works at anomalib's usual 256×256; one
        with a size of its own (vision transformers, above all) keeps that, and its maps are resized.
    pre_trained
        False: random weights in the place of the pretrained ones, and no download.
    **parameters
        Those of the peer's own class in `anomalib.models`.

    Raises
    ------
    ModelError
        anomalib refuses a parameter, or the weights can't be had.
    """

    peer: ClassVar[str]
    map_names: ClassVar[tuple[str, ...]] = ("anomaly_map", IMAGE_SCORE)

    def __init__(self, image_size: int | str = 256, pre_trained: bool = True, **parameters: Any) -> None:
        super().__init__()
        kind, bare = _kind(self.peer), is_untrained()
        known = inspect.signature(kind).parameters
        given: dict[str, Any] = {name: False for name in ("post_processor", "evaluator", "visualizer") if name in known}
        if "pre_trained" in known:
            given["pre_trained"] = pre_trained and not bare
        if bare and self.peer in TEXTURE_FOLDERS:
            parameters = {**parameters, TEXTURE_FOLDERS[self.peer]: tempfile.gettempdir()}
        try:
            with _quiet(), _packaged_weights() if pre_trained and not bare else _without_downloads():
                if "pre_processor" in known:
                    given["pre_processor"] = _pre_processor(kind, image_size)
                module = kind(**given, **parameters)
        except Exception as error:  # of anomalib, timm, torchvision, the hub: each has its own
            advice = "" if isinstance(error, TypeError | ValueError | AttributeError) else f"; {_ADVICE}"
            raise ModelError(f"{PREFIX}{self.peer}: {type(error).__name__}: {error}{advice}") from error
        if pre_trained:
            self.pretrained = {f"what anomalib gives {self.peer}, if anything": "the terms of whoever published it"}
        self.network: nn.Module = module.model
        self.transform = getattr(module.pre_processor, "transform", None)
        self.__dict__["_module"] = module  # not as a part: its state is the network's

    def fit(self, images_NHWC: np.ndarray, *, epochs: int, batch_size: int, seed: int, after_epoch: AfterEpoch) -> None:
        """Train by anomalib's own engine and recipe, on images held in memory."""
        from msad.models.anomalib_training import train

        device = next(self.parameters()).device
        try:
            with _quiet():
                train(self.__dict__.pop("_module"), images_NHWC, epochs, batch_size, seed, device, after_epoch)
        except OSError as error:
            raise ModelError(f"{PREFIX}{self.peer}: {type(error).__name__}: {error}; {_ADVICE}") from error
        self.to(device)

    def load_state_dict(self, state_dict: Mapping[str, Any], *arguments: Any, **named: Any) -> Any:
        """Load a state whose buffers may have other shapes: a memory bank is as large as the images made it."""
        for path, value in state_dict.items():
            module = self.get_submodule(path.rpartition(".")[0])
            name = path.rpartition(".")[2]
            current = module._buffers.get(name)
            if name in module._buffers and (current is None or current.shape != value.shape):
                device = next(self.parameters()).device
                module._buffers[name] = torch.empty_like(value, device=device)
        return super().load_state_dict(state_dict, *arguments, **named)

    def _maps(self, image_BCHW: Tensor) -> dict[str, Tensor]:
        seen_BCHW = self.transform(image_BCHW) if self.transform is not None else image_BCHW
        made, size, maps = self.network(seen_BCHW), image_BCHW.shape[-2:], {}
        if made.anomaly_map is not None:
            map_BHW = made.anomaly_map.float().reshape(len(image_BCHW), *made.anomaly_map.shape[-2:])
            maps["anomaly_map"] = _placed(map_BHW.unsqueeze(1), self.transform, size)
        if made.pred_score is not None:
            maps[IMAGE_SCORE] = made.pred_score.float().reshape(-1, 1, 1, 1).expand(-1, 1, *size).contiguous()
        return maps


@functools.cache
def peer_class(name: str) -> type[AnomalibPeer]:
    """Return the architecture `anomalib:NAME`; its parameters are those of anomalib's class.

    Raises
    ------
    ModelError
        anomalib is not installed, or has no such detector of images.
    """
    kind = _kind(name.removeprefix(PREFIX))
    own = [p for p in inspect.signature(AnomalibPeer).parameters.values() if p.kind is not p.VAR_KEYWORD]
    taken = {*NOT_PARAMETERS, *(p.name for p in own)}
    theirs = [p for p in inspect.signature(kind).parameters.values() if p.name not in taken]
    recipe = {"epochs": 100, "evaluate_every": 10, "batch_size": 32}
    with contextlib.suppress(Exception):  # a property of instances, though most write constants
        recipe["epochs"] = kind.trainer_arguments.fget(None)["max_epochs"]
    if kind.__name__ == "EfficientAd":
        recipe["batch_size"] = 1  # it refuses any other
    signature = inspect.Signature(
        [p.replace(kind=p.KEYWORD_ONLY, annotation=p.empty) for p in (*own, *theirs) if p.kind is not p.VAR_KEYWORD]
    )
    return type(
        kind.__name__,
        (AnomalibPeer,),
        {"peer": kind.__name__, "training_defaults": recipe, "__signature__": signature, "__doc__": kind.__doc__},
    )


def version() -> str:
    """Return anomalib's version."""
    return importlib.metadata.version("anomalib")


def _kind(peer: str) -> Any:
    try:
        with _quiet():
            models = importlib.import_module("anomalib.models")
    except ImportError as error:
        raise ModelError(
            f"{PREFIX}{peer} needs anomalib, which is not installed here ({error}): pip install 'msad[peers]'"
        ) from error
    base = importlib.import_module("anomalib.models.components").AnomalibModule
    known = {
        name: kind
        for name, kind in vars(models).items()
        if isinstance(kind, type) and issubclass(kind, base) and ".image." in kind.__module__
    }
    if peer not in known:
        raise ModelError(f"anomalib {version()} has no detector {peer!r}{did_you_mean(peer, sorted(known))}")
    return known[peer]


def _pre_processor(kind: Any, image_size: int | str) -> Any:
    """Return a peer's own preparation of images, at the sweep's size where its usual size is anomalib's."""
    usual = kind.configure_pre_processor()
    seen = usual.transform(torch.zeros(1, 3, *_USUAL_SIZE)).shape[-2:]
    if tuple(seen) != _USUAL_SIZE:
        return usual
    height, _, width = str(image_size).partition("x")
    return kind.configure_pre_processor(image_size=(int(height), int(width or height)))


def _placed(map_B1HW: Tensor, transform: Any, size: torch.Size) -> Tensor:
    """Bring a map to the images' size; where the peer saw only their centre, the rim repeats the map's."""
    steps = {type(step).__name__: step for step in getattr(transform, "transforms", [])}
    if "CenterCrop" in steps and "Resize" in steps:
        whole, part = (_sides(steps[name].size) for name in ("Resize", "CenterCrop"))
        sides = zip(map_B1HW.shape[-2:], whole, part, strict=True)
        rows, columns = (round(side * (all_ - seen) / seen / 2) for side, all_, seen in sides)
        map_B1HW = F.pad(map_B1HW, (columns, columns, rows, rows), mode="replicate")
    if map_B1HW.shape[-2:] != size:
        map_B1HW = F.interpolate(map_B1HW, tuple(size), mode="bilinear")
    return map_B1HW


def _sides(size: Any) -> tuple[int, int]:
    height, width = [*size, *size][:2] if isinstance(size, list | tuple) else (size, size)
    return height, width


@contextlib.contextmanager
def _packaged_weights() -> Iterator[None]:
    """Let timm take the weights of its `tf_efficientnet_lite0` from the package that ours come from.

    The two are one network, layer by layer in one order; so a peer can have the default backbone, without a download.
    """
    import timm

    create = timm.create_model

    def with_weights(name: str, pretrained: bool = False, **named: Any) -> nn.Module:
        own = name.partition(".")[0].removeprefix("tf_")
        if pretrained and own in LITES and name.startswith("tf_"):
            with contextlib.suppress(ModelError):  # without the package it is downloaded
                weights = packaged_weights(own).values()
                state = dict(zip(create(name).state_dict(), weights, strict=True))
                named = {**named, "pretrained_cfg_overlay": {"state_dict": state}}
        return create(name, pretrained=pretrained, **named)

    with mock.patch.object(timm, "create_model", with_weights):
        yield


@contextlib.contextmanager
def _without_downloads() -> Iterator[None]:
    """Let timm and torchvision draw random weights inside, whatever a peer asks them for.

    Half of anomalib's models have no switch for it; a trained one's weights come from its bundle.
    """
    import timm
    import torchvision.models as torchvision_models

    create, load = timm.create_model, nn.Module.load_state_dict

    def random_model(*arguments: Any, **named: Any) -> nn.Module:
        return create(*arguments, **{**named, "pretrained": False})

    def load_what_is_there(module: nn.Module, state: Mapping[str, Any], *arguments: Any, **named: Any) -> Any:
        return load(module, state, *arguments, **named) if state else None

    no_weights = mock.patch.object(torchvision_models.WeightsEnum, "get_state_dict", lambda *_, **__: {})
    with (
        no_weights,
        mock.patch.object(timm, "create_model", random_model),
        mock.patch.object(nn.Module, "load_state_dict", load_what_is_there),
    ):
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the notes and hints of anomalib and Lightning from the terminal; errors are raised all the same."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
