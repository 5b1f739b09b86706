"""A reconstruction and a U-Net that learns where it differs from the image by a defect, and where by chance.

Zavrtanik, Kristan, Skočaj, "DRAEM", ICCV 2021, arXiv 2108.07610: an autoencoder returns the good image from a corrupted
one, and a second network segments the corruption from both. Its ablation over MVTec AD gives 90.7 image AUROC to the
reconstruction alone, 93.9 to the segmentation alone, 98.0 to both.

Changed: a quarter of the width and one level less, for minutes instead of hours; one logit per pixel instead of a
softmax over two; a Dice loss beside the focal one; L1 and gradient-magnitude similarity beside L2 and SSIM; AdamW with
one cycle of the step size; the corruptions of `msad.models.synthesis.corruptions`; and the map below instead of the
probability.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from msad.models.blocks import EncoderDecoder
from msad.models.reconstruction import ReconstructionModel
from msad.models.registry import register
from msad.models.segmentation import dice_loss, evidence, focal_loss, start_rare


@register("multiscale_segmenter")
class MultiscaleSegmenter(ReconstructionModel):
    """Autoencoder without skips plus U-Net; 14,743,652 parameters with the defaults, 3,661,412 with depth 3.

    The mask's gradient reaches the autoencoder too, as in DRAEM: it is asked for reconstructions that differ visibly.

    The anomaly map `mask` is `msad.models.segmentation.evidence`.

    Parameters
    ----------
    base_width, segment_width
        Channels at full resolution of the autoencoder and of the U-Net; each doubles with every level.
    depth
        Levels of both.
    bottleneck_channels, skip, first_skip
        Of the autoencoder; see `msad.models.blocks.EncoderDecoder`. Without skips it can't copy a defect.
    norm
        Of both.
    perceptual_backbone
        See `msad.models.reconstruction.ReconstructionModel`.
    """

    loss_terms: ClassVar[tuple[str, ...]] = (*ReconstructionModel.loss_terms, "focal", "dice")
    default_loss_weights: ClassVar[dict[str, float]] = {
        **ReconstructionModel.default_loss_weights,
        "focal": 1.0,
        "dice": 1.0,
    }
    map_names: ClassVar[tuple[str, ...]] = ("mask", *ReconstructionModel.map_names)

    def __init__(
        self,
        base_width: int = 32,
        segment_width: int = 32,
        depth: int = 4,
        bottleneck_channels: int | None = None,
        skip: str = "none",
        first_skip: int = 2,
        norm: str = "batch",
        perceptual_backbone: str = "efficientnet_lite0",
    ) -> None:
        super().__init__(perceptual_backbone)
        shared: dict[str, Any] = {"depth": depth, "skip_dropout": 0.0, "norm": norm}
        self.network = EncoderDecoder(
            3,
            3,
            base_width=base_width,
            bottleneck_channels=bottleneck_channels,
            skip=skip,
            first_skip=first_skip,
            **shared,
        )
        self.segmenter = EncoderDecoder(
            6, 1, base_width=segment_width, bottleneck_channels=None, skip="concat", first_skip=0, **shared
        )
        start_rare(self.segmenter.head)
        self.size_multiple = 2**depth

    def reconstruct(self, image_BCHW: Tensor) -> Tensor:
        return torch.sigmoid(self.network(image_BCHW))

    def _losses(
        self, clean_BCHW: Tensor, corrupted_BCHW: Tensor, mask_B1HW: Tensor, terms: list[str]
    ) -> dict[str, Tensor]:
        made_BCHW = self.reconstruct(corrupted_BCHW)
        losses = self.distances(made_BCHW, clean_BCHW, [t for t in terms if t in ReconstructionModel.loss_terms])
        if {"focal", "dice"} & set(terms):
            logit_B1HW = self._segment(corrupted_BCHW, made_BCHW)
            losses |= {"focal": focal_loss(logit_B1HW, mask_B1HW), "dice": dice_loss(logit_B1HW, mask_B1HW)}
        return {term: losses[term] for term in terms}

    def _maps(self, image_BCHW: Tensor) -> dict[str, Tensor]:
        made_BCHW = self.reconstruct(image_BCHW)
        logit_B1HW = self._segment(image_BCHW, made_BCHW)
        return {"mask": evidence(logit_B1HW), **self.residuals(made_BCHW, image_BCHW)}

    def _segment(self, image_BCHW: Tensor, made_BCHW: Tensor) -> Tensor:
        return self.segmenter(torch.cat([image_BCHW.to(made_BCHW.dtype), made_BCHW], dim=1))
