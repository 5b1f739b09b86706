"""Losses of a predicted mask, from its logits, in float32 even under autocast.

Tensors are named by shape: B images, H×W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

FOCUS = 2.0  # the exponent of the paper, and of DRAEM


def focal_loss(logit_B1HW: Tensor, mask_B1HW: Tensor) -> Tensor:
    """Return the mean of `(1 - p) ** 2 * -log(p)` over all pixels, p being the probability of the true class.

    Lin et al., "Focal loss for dense object detection", arXiv 1708.02002, without the weights of the classes, as in
    DRAEM (Zavrtanik et al., arXiv 2108.07610): a defect covers few pixels, and the many easy ones count for little.
    """
    with torch.autocast(logit_B1HW.device.type, enabled=False):
        logit_B1HW, mask_B1HW = logit_B1HW.float(), mask_B1HW.float()
        surprise_B1HW = F.binary_cross_entropy_with_logits(logit_B1HW, mask_B1HW, reduction="none")
        wrong_B1HW = (torch.sigmoid(logit_B1HW) - mask_B1HW).abs()
        return (wrong_B1HW**FOCUS * surprise_B1HW).mean()


def dice_loss(logit_B1HW: Tensor, mask_B1HW: Tensor) -> Tensor:
    """Return 1 minus twice the overlap over the sum of both areas, in [0, 1]; one overlap for the whole batch.

    Milletari, Navab, Ahmadi, "V-Net", arXiv 1606.04797, with areas instead of squares. Over the batch and not per
    image, for half of the images have no defect, and an empty mask has no overlap.
    """
    with torch.autocast(logit_B1HW.device.type, enabled=False):
        chance_B1HW, mask_B1HW = torch.sigmoid(logit_B1HW.float()), mask_B1HW.float()
        overlap, areas = (chance_B1HW * mask_B1HW).sum(), chance_B1HW.sum() + mask_B1HW.sum()
        return 1 - (2 * overlap + 1) / (areas + 1)
