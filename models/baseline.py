"""The symmetric convolutional autoencoder without skips: everything has to pass the bottleneck.

The plain autoencoder of Bergmann et al. (arXiv 1807.02011) in its role as the floor to beat; here with the double
convolutions of a U-Net, trained from corrupted to clean, with gradient-magnitude similarity in loss and maps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from msad.models.blocks import EncoderDecoder
from msad.models.reconstruction import ReconstructionModel
from msad.models.registry import register


@register("baseline")
class Baseline(ReconstructionModel):
    """Convolutional autoencoder; 1,733,539 parameters with the defaults.

    Parameters
    ----------
    base_width, depth, bottleneck_channels, norm
        See `msad.models.blocks.EncoderDecoder`.
    perceptual_backbone
        See `msad.models.reconstruction.ReconstructionModel`.
    """

    def __init__(
        self,
        base_width: int = 32,
        depth: int = 3,
        bottleneck_channels: int | None = None,
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
            skip="none",
            skip_dropout=0.0,
            first_skip=0,
            norm=norm,
        )
        self.size_multiple = 2**depth

    def reconstruct(self, image_BCHW: Tensor) -> Tensor:
        return torch.sigmoid(self.network(image_BCHW))
