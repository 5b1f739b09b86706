"""A predicted defect mask: its losses and its anomaly map, from its logits, in float32 even under autocast.

Tensors are named by shape: B images, H×W pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FOCUS = 2.0  # the exponent of the paper, and of DRAEM
RARE = 0.01  # what share of the pixels an untrained head should call defective, as in the focal loss's paper
FLOOR = 5.0  # logits below -5 (a chance under 0.7 %) count as sure of a good pixel


def start_rare(head: nn.Conv2d) -> None:
    """Set a head's bias so that it begins by calling `RARE` of the pixels defective."""
    nn.init.constant_(head.bias, math.log(RARE / (1 - RARE)))


def evidence(logit_B1HW: Tensor) -> Tensor:
    """Return the anomaly map softplus(logit + 5), above 0.

    A probability reaches 1 in float32 for any logit above 17 and then ranks no more, and good pixels deviate so little
    in it that a map in units of their deviation explodes. A bare logit ranks, but its differences between -10 and -20,
    which say nothing, drown the few pixels of a defect in means over space. Above the floor this map is the logit,
    below it fades out as the probability does.
    """
    return F.softplus(logit_B1HW.float() + FLOOR)


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
