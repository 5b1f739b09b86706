"""A distance between images in the feature space of a frozen network.

Johnson, Alahi, Fei-Fei, arXiv 1603.08155; features are scaled to unit length per pixel as in LPIPS (Zhang et al., arXiv
1801.03924), without its learned weights. Tensors are named by shape: B images, C channels, H×W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from msad.models.backbones import LITE0, backbone


def perceptual_distance(made_BCHW: Tensor, target_BCHW: Tensor, name: str = LITE0) -> Tensor:
    """Return the mean squared distance of unit features over three stages: a scalar in [0, 4], 0 when equal.

    Parameters
    ----------
    made_BCHW, target_BCHW
        Float RGB images in [0, 1]; the gradient reaches the first only.
    name
        See `msad.models.backbones.backbone`.

    Raises
    ------
    ModelError
        The backbone can't be had.
    """
    features = backbone(name, made_BCHW.device)
    with torch.no_grad():
        targets = features(target_BCHW)
    distances = [
        (F.normalize(made.float(), dim=1) - F.normalize(target.float(), dim=1)).square().sum(dim=1).mean()
        for made, target in zip(features(made_BCHW), targets, strict=True)
    ]
    return torch.stack(distances).mean()
