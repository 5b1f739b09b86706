"""What every reconstructing architecture shares: the distances from reconstruction to image, as losses and as maps.

Tensors are named by shape: B images, C channels, H×W pixels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F

from msad.models.base import AnomalyModel
from msad.models.perceptual import perceptual_distance
from msad.models.similarity import gradient_similarity, gradient_similarity_map, ms_ssim, ssim_map


class ReconstructionModel(AnomalyModel):
    """An architecture that returns the image as it would look without a defect.

    Losses compare the reconstruction of the corrupted image with the clean one. With weight 1 each, L1, SSIM and
    gradient-magnitude similarity are the objective of RIAD (Zavrtanik et al., Pattern Recognition 112, 2021) with L1
    in the place of L2, whose small gradients leave faint remains of a defect; MSE stays beside it for large ones.

    Parameters
    ----------
    perceptual_backbone
        Frozen network of the `perceptual` term; built only when that term is asked for. See `msad.models.backbones`.
    """

    loss_terms: ClassVar[tuple[str, ...]] = ("l1", "mse", "ssim", "ms_ssim", "gms", "perceptual")
    costly_terms: ClassVar[tuple[str, ...]] = ("perceptual",)
    default_loss_weights: ClassVar[dict[str, float]] = {"l1": 1.0, "mse": 1.0, "ssim": 1.0, "gms": 1.0}
    map_names: ClassVar[tuple[str, ...]] = ("l1", "ssim", "msgms")
    # Long, for a GPU: minutes there, hours on a CPU. A job that names its own epochs gets those.
    training_defaults: ClassVar[dict[str, Any]] = {"epochs": 300, "learning_rate": 1e-3, "batch_size": 8}

    def __init__(self, perceptual_backbone: str = "efficientnet_lite0") -> None:
        super().__init__()
        self.perceptual_backbone = perceptual_backbone

    @abstractmethod
    def reconstruct(self, image_BCHW: Tensor) -> Tensor:
        """Return B×3×H×W images in [0, 1]."""

    def distances(self, made_BCHW: Tensor, clean_BCHW: Tensor, terms: list[str]) -> dict[str, Tensor]:
        """Return the named losses of a reconstruction, float32 scalars."""
        # Plane after plane, once: every distance would otherwise rearrange the network's interleaved channels again.
        made_BCHW, clean_BCHW = made_BCHW.float().contiguous(), clean_BCHW.float().contiguous()
        distances: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "l1": F.l1_loss,
            "mse": F.mse_loss,
            "ssim": lambda made, clean: 1 - ssim_map(made, clean).mean(),
            "ms_ssim": lambda made, clean: 1 - ms_ssim(made, clean).mean(),
            "gms": lambda made, clean: 1 - gradient_similarity(made, clean),
            "perceptual": lambda made, clean: perceptual_distance(made, clean, self.perceptual_backbone),
        }
        return {term: distances[term](made_BCHW, clean_BCHW) for term in terms}

    def residuals(self, made_BCHW: Tensor, image_BCHW: Tensor) -> dict[str, Tensor]:
        """Return the maps of a reconstruction, B×1×H×W in [0, 1]; 0 where it equals the image."""
        made_BCHW, image_BCHW = made_BCHW.float().contiguous(), image_BCHW.float().contiguous()
        return {
            "l1": (made_BCHW - image_BCHW).abs().mean(dim=1, keepdim=True),
            "ssim": (1 - ssim_map(made_BCHW, image_BCHW).mean(dim=1, keepdim=True)) / 2,
            "msgms": 1 - gradient_similarity_map(made_BCHW, image_BCHW),
        }

    def _losses(
        self, clean_BCHW: Tensor, corrupted_BCHW: Tensor, mask_B1HW: Tensor, terms: list[str]
    ) -> dict[str, Tensor]:
        return self.distances(self.reconstruct(corrupted_BCHW), clean_BCHW, terms)

    def _maps(self, image_BCHW: Tensor) -> dict[str, Tensor]:
        return self.residuals(self.reconstruct(image_BCHW), image_BCHW)
