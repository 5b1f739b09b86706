"""Backbones of timm by name, `timm:resnet18.a1_in1k`; timm (Wightman, Apache-2.0) is the extra `timm`.

A convolutional network gives its stages (`features_only`). A vision transformer, as DINOv2 (Oquab et al., arXiv
2304.07193) and DINOv3 (Siméoni et al., arXiv 2508.10104), has places of one size from its first block to its last, so
the ends of the four quarters of its blocks take the part of the four stages (`forward_intermediates`, with the
network's last normalisation, as DINOv2's own `get_intermediate_layers`).

Tensors are named by shape: B images, C channels, H×W pixels.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from msad.models.errors import ModelError

PREFIX = "timm:"
STAGES = (4, 8, 16, 32)
"""Strides that stages are asked for by; a vision transformer's quarters answer to the same."""


class Taken(NamedTuple):
    """A network that returns the features asked for, the stride of each, and mean and deviation per colour channel."""

    network: nn.Module
    strides: tuple[int, ...]
    normalisation: tuple[tuple[float, ...], tuple[float, ...]]


class _Plan(NamedTuple):
    """Which of timm's stages, or of a transformer's blocks, are wanted, and the stride of each."""

    chosen: list[int]
    strides: tuple[int, ...]
    transformer: bool

    def built(self, timm: Any, own: str, pretrained: bool) -> nn.Module:
        if self.transformer:
            return _Blocks(timm.create_model(own, pretrained, dynamic_img_size=True), self.chosen)
        return timm.create_model(own, pretrained, features_only=True, out_indices=self.chosen)


class _Blocks(nn.Module):
    """A vision transformer that returns the places of some of its blocks, B×C×H×W, for images of any fitting size."""

    def __init__(self, transformer: nn.Module, blocks: list[int]) -> None:
        super().__init__()
        self.transformer, self._blocks = transformer, blocks
        transformer.prune_intermediate_layers(blocks, prune_norm=False, prune_head=True)

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        return self.transformer.forward_intermediates(image_BCHW, self._blocks, norm=True, intermediates_only=True)


def take(name: str, strides: Sequence[int], untrained: bool) -> Taken:
    """Return the part of one of timm's networks that gives the stages of some strides.

    Parameters
    ----------
    name
        `timm:` and a name of timm's, best with the tag of its weights.
    strides
        Some of `STAGES`, ascending.
    untrained
        Random weights, and no download.

    Raises
    ------
    ModelError
        timm is not installed, does not know the name or has no weights for it; the network lacks a stage or works at
        one size of images alone; or the weights can't be had.
    """
    timm, own = _timm(name), name.removeprefix(PREFIX)
    config = _config(timm, name)
    try:
        with torch.device("meta"):  # shapes without memory, and before any download
            plan = _planned(timm, own, strides)
            side = 2 * max(plan.strides)
            features = plan.built(timm, own, pretrained=False).eval()(torch.zeros(1, 3, side, 2 * side))
    except ModelError:
        raise
    except Exception as error:  # timm's networks refuse what they cannot do in many ways
        raise ModelError(
            f"backbone {name!r} cannot be used: it gives no stages, or takes images of one size alone "
            f"({type(error).__name__}: {_first_line(error)}); use another of timm's"
        ) from error
    if [f.shape[2:] for f in features] != [(side // stride, 2 * side // stride) for stride in plan.strides]:
        raise ModelError(f"backbone {name!r} does not give its features as channels × height × width: use another")
    if not untrained and not config.has_weights:
        raise ModelError(f"timm {timm.__version__} has no weights of {own!r}{_tags(timm, own)}")
    try:
        network = plan.built(timm, own, pretrained=not untrained)
    except Exception as error:  # of the hub, its client and the file's format: each has its own
        raise ModelError(
            f"the weights of backbone {name!r} could not be had ({_first_line(error)}): use it once where there is "
            "internet and copy the folder that HF_HOME names (~/.cache/huggingface), or take one without a download"
        ) from error
    return Taken(network, plan.strides, (config.mean, config.std))


def _planned(timm: Any, own: str, strides: Sequence[int]) -> _Plan:
    sketch = timm.create_model(own, features_only=True)
    found = sketch.feature_info.reduction()
    transformer = len(set(found)) == 1
    if transformer:  # the last block of each quarter
        depth = len(sketch.model.feature_info)
        ends = {stride: math.ceil(depth * part / 4) - 1 for part, stride in enumerate(STAGES, start=1)}
    else:
        ends = {stride: index for index, stride in enumerate(found) if stride in STAGES}
    if not strides or list(strides) != sorted(set(strides) & set(ends)):
        raise ModelError(
            f"strides {tuple(strides)} of {PREFIX + own!r} asked for; it has {tuple(ends)}: name some, ascending"
        )
    given = [found[0]] * len(strides) if transformer else strides
    return _Plan([ends[stride] for stride in strides], tuple(given), transformer)


def source(name: str) -> str:
    """Say which weights a name stands for with the timm that is installed: a name without a tag has a default one."""
    timm = _timm(name)
    config = _config(timm, name)
    return f"{PREFIX}{config.architecture}.{config.tag} of timm {timm.__version__}"


def terms(name: str) -> str:
    """Say in one line where the weights come from and under which licence, as timm states it."""
    config = _config(_timm(name), name)
    place = f"huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else config.url or "no published weights"
    return f"{config.license or 'a licence that timm does not state'}, {place}"


def version() -> str:
    """Return timm's version."""
    return importlib.metadata.version("timm")


def _timm(name: str) -> Any:
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise ModelError(
            f"backbone {name!r} needs timm, which is not installed here ({error}): pip install 'msad[timm]'"
        ) from error


def _config(timm: Any, name: str) -> Any:
    """Return what timm states of a network's weights; refuse a name that it would fetch code or settings for."""
    own = name.removeprefix(PREFIX)
    if not timm.is_model(own):
        near = difflib.get_close_matches(own.partition(".")[0], timm.list_models(), n=1)
        advice = f"; did you mean {near[0]!r}?" if near else ": timm.list_models() names all"
        raise ModelError(f"timm {timm.__version__} has no network {own!r}{advice}")
    try:
        return timm.get_pretrained_cfg(own)
    except RuntimeError as error:
        raise ModelError(f"timm {timm.__version__} has no weights {own!r}{_tags(timm, own)}") from error


def _tags(timm: Any, own: str) -> str:
    kind = own.partition(".")[0]
    tagged = [weights for weights in timm.list_pretrained(f"{kind}*") if weights.partition(".")[0] == kind]
    return f"; it has {', '.join(tagged)}" if tagged else ""


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")
