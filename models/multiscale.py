"""The multi-scale autoencoder: a U-Net that is trained to return the good image from a corrupted one.

Skips give sharp reconstructions, and let an untreated network copy the defect as well: plainly concatenated at every
level, they reconstruct better than none and detect no better. The remedy of Collin and De Vleeschouwer (AESc, arXiv
2008.12977) is kept: train from corrupted to clean, so that copying costs. Besides, skips start closed behind gates,
lose channels at random and leave out the full resolution, where an image passes unchanged most easily.

Changed: the U-Net of Ronneberger et al. (arXiv 1505.04597) with variable depth and joins, the corruptions of
`msad.models.synthesis.corruptions`, and the structural losses of RIAD (Zavrtanik et al., Pattern Recognition 112,
2021).
"""

from __future__ import annotations

import torch
from torch import Tensor

from msad.models.blocks import EncoderDecoder
from msad.models.reconstruction import ReconstructionModel
from msad.models.registry import register


@register("multiscale")
class Multiscale(ReconstructionModel):
    """U-Net autoencoder; 1,774,691 parameters with the defaults.

    As a plain U-Net, with `skip="concat"` and `first_skip=0`, it has 1,927,075 parameters, with 4 levels 7,763,107; one
    with biases before its normalisations, which change nothing, 1,408 or 2,944 more.

    Parameters
    ----------
    base_width, depth, bottleneck_channels, skip, skip_dropout, first_skip, norm
        See `msad.models.blocks.EncoderDecoder`.
    perceptual_backbone
        See `msad.models.reconstruction.ReconstructionModel`.
    """

    def __init__(
        self,
        base_width: int = 32,
        depth: int = 3,
        bottleneck_channels: int | None = None,
        skip: str = "gated",
        skip_dropout: float = 0.1,
        first_skip: int = 1,
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
