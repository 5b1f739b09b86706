"""A whole detector as one network: photographs of any size in, scores and anomaly maps out, as a line computer runs it.

Only operations that every export format knows are used. Images are resized by products with matrices, which the graph
makes from the sizes it is given or holds for the one size that it takes, in the arithmetic of Pillow's antialiased
bilinear filter (its Resample.c), so that a line computer sees exactly the pixels that training saw. ONNX's own `Resize`
with antialias is missing from some runtimes, and in onnxruntime 1.32 differs from Pillow by up to 15 grey levels.

Pillow's weights are whole numbers of 22 bits, and what they add up to has 30, more than float32 holds. Each is a
multiple of 256 and a rest here: the products of both are whole numbers below 2**24, up to a reduction by 100, and so
are exact in float32, which is quicker than float64 and all that some devices have.

Shapes: N images of H×W pixels; h×w is the size that the network works on.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from msad.models.base import AnomalyModel
from msad.models.precision import full_float32
from msad.models.scorer import Scorer

_PRECISION = 22  # bits of Pillow's weights for images of 8 bits
_REST = 8  # of which are in the second part

Parts = tuple[Tensor, Tensor]
"""A matrix of Pillow's weights as multiples of 256 and the rest, float32 both."""


class Detector(nn.Module):
    """Network, scorer and thresholds as one module, in evaluation mode and without gradients.

    Parameters
    ----------
    model, scorer
        A trained network and the fitted blend of its maps.
    threshold, pixel_threshold
        Scores above the first are called anomalous, pixels of a map above the second are in the mask.
    sides
        Height h and width w in pixels of the images that model and scorer were fitted on.
    photograph
        Height and width of the only photographs that it takes; None: any.
    """

    def __init__(
        self,
        model: AnomalyModel,
        scorer: Scorer,
        threshold: float,
        pixel_threshold: float,
        sides: tuple[int, int],
        photograph: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.scorer, self.sides, self.photograph = model, scorer, sides, photograph
        self.register_buffer("threshold", torch.tensor(threshold, dtype=torch.float32))
        self.register_buffer("pixel_threshold", torch.tensor(pixel_threshold, dtype=torch.float32))
        if photograph is not None:
            there, back = self._matrices(*photograph, device=None)
            for index, matrix in enumerate((*there[0], *there[1], *back)):
                self.register_buffer(f"resize_{index}", matrix)
        self.eval().requires_grad_(False)

    def forward(self, image_NHW3: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Score photographs.

        Parameters
        ----------
        image_NHW3
            uint8, RGB, all of one size.

        Returns
        -------
        tuple
            `score` (float32, N), `is_anomalous` (bool, N), `anomaly_map` (float32, N×H×W, higher where more anomalous)
            and `mask` (bool, N×H×W).
        """
        if self.photograph is None:
            there, (down, across) = self._matrices(*image_NHW3.shape[1:3], device=image_NHW3.device)
        else:
            *kept, down, across = (getattr(self, f"resize_{index}") for index in range(6))
            there = (kept[0], kept[1]), (kept[2], kept[3])
        own = image_NHW3.permute(0, 3, 1, 2).float()
        image_N3hw = own / 255 if self.photograph == self.sides else _resized(own, *there)
        map_N1hw, score_N = self.scorer(self.model.anomaly_maps(image_N3hw))
        map_NHW = map_N1hw[:, 0] if self.photograph == self.sides else down @ map_N1hw[:, 0] @ across
        return score_N, score_N > self.threshold, map_NHW, map_NHW > self.pixel_threshold

    def _matrices(
        self, height: int, width: int, device: torch.device | None
    ) -> tuple[tuple[Parts, Parts], tuple[Tensor, Tensor]]:
        """Return what resizes photographs down and across, and what brings maps back."""
        high, wide = self.sides
        there = pillow_parts(height, high, "down", device), pillow_parts(width, wide, "across", device)
        back = resampling_matrix(high, height, "down", device), resampling_matrix(wide, width, "across", device)
        return there, (back[0].float(), back[1].float())


@full_float32()
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
    own = image_NHW3.permute(0, 3, 1, 2).float()
    if (height, width) == (high, wide):
        return own / 255
    return _resized(own, _kept_parts(height, high, "down", device), _kept_parts(width, wide, "across", device))


def _resized(image_N3HW: Tensor, down: Parts, across: Parts) -> Tensor:
    """Resize grey levels, 0 to 255; the result is in [0, 1]."""
    image_N3Hw = _grey_levels(*(image_N3HW @ part for part in across))
    return _grey_levels(*(part @ image_N3Hw for part in down)) / 255


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


def pillow_parts(source: int, target: int, direction: str, device: torch.device | None = None) -> Parts:
    """Return `resampling_matrix` as Pillow has it, in whole multiples of 2**-22, here of 1, as its two parts."""
    weights = (resampling_matrix(source, target, direction, device) * 2**_PRECISION + 0.5).floor()
    multiples = (weights / 2**_REST).floor()
    return multiples.float(), (weights - multiples * 2**_REST).float()


@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)
def _kept_parts(source: int, target: int, direction: str, device: torch.device) -> Parts:
    """Return `pillow_parts` that were made on the CPU: another device may add up its weights in another order."""
    multiples, rest = pillow_parts(source, target, direction)
    return multiples.to(device), rest.to(device)


def _grey_levels(multiples: Tensor, rest: Tensor) -> Tensor:
    """Bring products with both parts back to whole grey levels, as Pillow does after each pass: round(sum / 2**22)."""
    carried = ((rest + 2 ** (_PRECISION - 1)) / 2**_REST).floor()
    return ((multiples + carried) / 2 ** (_PRECISION - _REST)).floor()
