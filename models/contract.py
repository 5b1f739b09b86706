"""What every architecture must keep to, checked in a second on small random images: before a user's own is searched.

Tensors are named by shape: B images, C channels, H×W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from msad.models.base import AnomalyModel
from msad.models.errors import ModelError

_TOLERANCE = {"atol": 1e-4, "rtol": 1e-3}


def contract_problems(model: AnomalyModel, image_size: int = 64, elongated: bool = False) -> list[str]:
    """Return in which points a model does not do what `msad.models.base.AnomalyModel` asks for; empty where it does.

    Parameters
    ----------
    model
        Freshly built, on the CPU; its running statistics and gradients are changed.
    image_size
        Side in pixels of the images it is tried on; rounded up to the model's `size_multiple`.
    elongated
        Try it on images that are twice as high as wide.
    """
    multiple = max(1, int(model.size_multiple))
    side = -(-image_size // multiple) * multiple
    generator = torch.Generator().manual_seed(0)
    height, width = (2 * side if elongated else side), side
    clean_BCHW = torch.rand(3, 3, height, width, generator=generator)
    mask_B1HW = torch.zeros(3, 1, height, width)
    mask_B1HW[..., side // 4 : side // 2, side // 4 : side // 2] = 1
    corrupted_BCHW = torch.where(mask_B1HW > 0, 1 - clean_BCHW, clean_BCHW)
    try:
        return [*_loss_problems(model, clean_BCHW, corrupted_BCHW, mask_B1HW), *_map_problems(model, clean_BCHW)]
    except ModelError as error:
        return [str(error)]
    except Exception as error:  # a user's code may fail in any way; the reason is what he needs
        return [f"it fails on images of {height}×{width} pixels: {type(error).__name__}: {error}"]


def _loss_problems(model: AnomalyModel, clean: Tensor, corrupted: Tensor, mask_B1HW: Tensor) -> Iterator[str]:
    unknown = sorted({*model.default_loss_weights, *model.costly_terms} - set(model.loss_terms))
    if unknown:
        yield f"default_loss_weights or costly_terms name {', '.join(unknown)}, which loss_terms does not"
        return
    model.train()
    model.adapt([model.encode(clean)])
    if not model.loss_terms:
        return
    wanted = list(model.default_loss_weights)
    terms = model.losses(clean, corrupted, mask_B1HW, terms=wanted)
    if set(terms) != set(wanted):
        yield f"losses returns the terms {sorted(terms)}; asked for were {sorted(wanted)}"
        return
    for name, value in terms.items():
        if value.shape != () or not torch.isfinite(value):
            shown = f"shape {tuple(value.shape)}" if value.shape else f"the value {value.item():g}"
            yield f"the loss {name!r} has {shown}; it must be a finite scalar"
            return
    total = sum(terms.values())
    if not total.requires_grad:
        yield "the losses have no gradient: nothing of the model would be trained"
        return
    total.backward()
    if not all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None):
        yield "the losses have a gradient that is not finite"


@torch.no_grad()
def _map_problems(model: AnomalyModel, image_BCHW: Tensor) -> Iterator[str]:
    model.eval()
    maps = model.anomaly_maps(image_BCHW)
    if tuple(maps) != tuple(model.map_names):
        yield f"anomaly_maps returns {', '.join(maps)}; map_names says {', '.join(model.map_names)}"
    size = image_BCHW[:, :1].shape
    for name, map_B1HW in maps.items():
        if map_B1HW.shape != size or not map_B1HW.isfinite().all():
            yield f"the map {name!r} must be finite and B×1×H×W = {tuple(size)}; it is {tuple(map_B1HW.shape)}"
            return
    alone = model.anomaly_maps(image_BCHW[1:2])
    for name, map_B1HW in alone.items():
        if not torch.allclose(map_B1HW, maps[name][1:2], **_TOLERANCE):
            yield f"the map {name!r} of an image depends on the other images of its batch"
