"""Losses of a predicted defect mask: most pixels are clean, and a small defect counts as much as a large one.

Tensors are named by shape: B images, H×W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

FOCUS = 2.0


def focal_loss(logit_B1HW: Tensor, share_B1HW: Tensor) -> Tensor:
    """Return the focal loss of Lin et al. (arXiv 1708.02002) with focus 2 and no class weight: a scalar ≥ 0.

    Parameters
    ----------
    logit_B1HW
        Log odds that a pixel is defective.
    share_B1HW
        How much of it is, in [0, 1].
    """
    entropy_B1HW = F.binary_cross_entropy_with_logits(logit_B1HW, share_B1HW, reduction="none")
    error_B1HW = (torch.sigmoid(logit_B1HW) - share_B1HW).abs()
    return (error_B1HW**FOCUS * entropy_B1HW).mean()


def dice_loss(logit_B1HW: Tensor, share_B1HW: Tensor) -> Tensor:
    """Return 1 - the soft Dice overlap (V-Net, Milletari et al., arXiv 1606.04797) per image, in [0, 1].

    One pixel is added to both sides of the fraction, so that an image without a defect scores 0 when none is predicted.
    """
    chance_B1HW = torch.sigmoid(logit_B1HW)
    overlap_B = (chance_B1HW * share_B1HW).sum(dim=(1, 2, 3))
    total_B = (chance_B1HW.square() + share_B1HW.square()).sum(dim=(1, 2, 3))
    return (1 - (2 * overlap_B + 1) / (total_B + 1)).mean()
