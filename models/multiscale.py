"""The multi-scale autoencoder: a U-Net that is trained to return the good image from a corrupted one.

Skips give sharp reconstructions, and let an untreated network copy the defect as well. The remedy of Collin and De
Vleeschouwer (AESc, arXiv 2008.12977) is kept: train from corrupted to clean, so that copying costs. Changed: the U-Net
of Ronneberger et al. (arXiv 1505.04597) with variable depth and joins, the corruptions of `models.corruptions`, and the
structural losses of RIAD (Zavrtanik et al., Pattern Recognition 112, 2021).
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.blocks import EncoderDecoder
from models.reconstruction import ReconstructionModel
from models.registry import register


@register("multiscale")
class Multiscale(ReconstructionModel):
    """U-Net autoencoder; 1,928,483 parameters with the defaults, 7,766,051 with 4 levels.

    Parameters
    ----------
    base_width, depth, bottleneck_channels, skip, skip_dropout, first_skip, norm
        See `models.blocks.EncoderDecoder`.
    perceptual_backbone
        See `models.reconstruction.ReconstructionModel`.
    """

    def __init__(
        self,
        base_width: int = 32,
        depth: int = 3,
        bottleneck_channels: int | None = None,
        skip: str = "concat",
        skip_dropout: float = 0.0,
        first_skip: int = 0,
        norm: str = "batch",
        perceptual_backbone: str = "efficientnet_lite0",
    ) -> None:
        super().__init__(perceptual_backbone)
        self.network = EncoderDecoder(
            3,
            3,
            base_width=base_width,
            depth=depth,
            bottleneck_channels=bottleneck_channels,
            skip=skip,
            skip_dropout=skip_dropout,
            first_skip=first_skip,
            norm=norm,
        )
        self.size_multiple = 2**depth

    def reconstruct(self, image_BCHW: Tensor) -> Tensor:
        return torch.sigmoid(self.network(image_BCHW))
