"""A whole detector as one network: photographs of any size in, scores and anomaly maps out, as a line computer runs it.

Only operations that every export format knows are used. Images are resized by products with matrices that the graph
makes from the sizes it is given, in the arithmetic of Pillow's antialiased bilinear filter (its Resample.c), so that a
line computer sees exactly the pixels that training saw. ONNX's own `Resize` with antialias is missing from some
runtimes, and in onnxruntime 1.32 differs from Pillow by up to 15 grey levels.

Shapes: N images of H×W pixels; h×w is the size that the network works on.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from msad.models.base import AnomalyModel
from msad.models.scorer import Scorer

_PRECISION = 22  # bits of Pillow's weights for images of 8 bits; sums of their products are whole numbers below 2**53


class Detector(nn.Module):
    """Network, scorer and threshold as one module, in evaluation mode and without gradients.

    Parameters
    ----------
    model, scorer
        A trained network and the fitted blend of its maps.
    threshold
        Scores above it are called anomalous.
    sides
        Height h and width w in pixels of the images that model and scorer were fitted on.
    """

    def __init__(self, model: AnomalyModel, scorer: Scorer, threshold: float, sides: tuple[int, int]) -> None:
        super().__init__()
        self.model, self.scorer, self.sides = model, scorer, sides
        self.register_buffer("threshold", torch.tensor(threshold, dtype=torch.float32))
        self.eval().requires_grad_(False)

    def forward(self, image_NHW3: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Score photographs.

        Parameters
        ----------
        image_NHW3
            uint8, RGB, all of one size.

        Returns
        -------
        tuple
            `score` (float32, N), `is_anomalous` (bool, N) and `anomaly_map` (float32, N×H×W, higher where more
            anomalous).
        """
        height, width = image_NHW3.shape[1:3]
        (high, wide), device = self.sides, image_NHW3.device
        matrices = pillow_matrix(height, high, "down", device), pillow_matrix(width, wide, "across", device)
        map_N1hw, score_N = self.scorer(self.model.anomaly_maps(_resized(image_NHW3, *matrices)))
        map_NHw = resampling_matrix(high, height, "down", device).float() @ map_N1hw[:, 0]
        map_NHW = map_NHw @ resampling_matrix(wide, width, "across", device).float()
        return score_N, score_N > self.threshold, map_NHW


def resized(image_NHW3: Tensor, sides: tuple[int, int]) -> Tensor:
    """Resize photographs where they are: to the last grey level as `msad.data_io.decode.resize` does.

    Parameters
    ----------
    image_NHW3
        uint8, RGB, all of one size H×W.
    sides
        Height h and width w in pixels.

    Returns
    -------
    Tensor
        float32 N×3×h×w in [0, 1].
    """
    (height, width), (high, wide), device = image_NHW3.shape[1:3], sides, image_NHW3.device
    if (height, width) == (high, wide):
        return image_NHW3.permute(0, 3, 1, 2).float() / 255
    return _resized(image_NHW3, _kept_matrix(height, high, "down", device), _kept_matrix(width, wide, "across", device))


def _resized(image_NHW3: Tensor, down_hH: Tensor, across_Ww: Tensor) -> Tensor:
    image_N3Hw = _grey_levels(image_NHW3.permute(0, 3, 1, 2).double() @ across_Ww)
    return _grey_levels(down_hH @ image_N3Hw).float() / 255


def resampling_matrix(source: int, target: int, direction: str, device: torch.device | None = None) -> Tensor:
    """Return the float64 matrix that resizes an image bilinearly, antialiased where it shrinks.

    The weights of a target pixel are a triangle around its centre, as wide as the reduction, and sum to 1.

    Parameters
    ----------
    source, target
        Pixels before and after.
    direction
        `down`: target×source, to multiply an image with from the left; `across`: source×target, from the right. Made so
        and not transposed: onnxruntime 1.22 joins a transposition and a product to one it cannot compute in float64.
    device
        Where to make it.
    """
    # Scalars as tensors: in an exported graph the sizes are known only when it runs.
    source_side, target_side = (torch.full((), side, dtype=torch.float64, device=device) for side in (source, target))
    scale = source_side / target_side
    along, other = (1, 0) if direction == "down" else (0, 1)  # the axis of the source's pixels, of the target's
    source_at = (torch.arange(source, dtype=torch.float64, device=device) + 0.5).unsqueeze(other)
    target_at = ((torch.arange(target, dtype=torch.float64, device=device) + 0.5) * scale).unsqueeze(along)
    weight = (1 - (source_at - target_at).abs() / scale.clamp(min=1)).clamp(min=0)
    return weight / weight.sum(dim=along, keepdim=True)


def pillow_matrix(source: int, target: int, direction: str, device: torch.device | None = None) -> Tensor:
    """Return `resampling_matrix` as Pillow has it: whole multiples of 2**-22, here of 1, in float64."""
    return (resampling_matrix(source, target, direction, device) * 2**_PRECISION + 0.5).floor()


@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)
def _kept_matrix(source: int, target: int, direction: str, device: torch.device) -> Tensor:
    """Return a `pillow_matrix` that was made on the CPU: another device may add up its weights in another order."""
    return pillow_matrix(source, target, direction).to(device)


def _grey_levels(sum_NCHW: Tensor) -> Tensor:
    """Bring products with a `pillow_matrix` back to whole grey levels, as Pillow does after each pass."""
    return ((sum_NCHW + 2 ** (_PRECISION - 1)) / 2**_PRECISION).floor()
