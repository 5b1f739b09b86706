"""What JPEG compression does to images, computed where they are: a GPU need not wait for a codec on the host.

Baseline JPEG (ITU-T T.81) as libjpeg sets it up: luma and, at half the resolution, chroma in 8×8 blocks, whose cosine
transform is rounded to multiples of its Annex K's tables, scaled by the quality. Entropy coding loses nothing and is
left out.

Tensors are named by shape: B images, H×W pixels.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 8

_LUMA = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56),
    *(14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA = (
    *(17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99),
    *(47, 66, 99, 99, 99, 99, 99, 99, *(32 * (99,))),
)
_YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


def jpeg(image_B3HW: Tensor, quality_B: Tensor) -> Tensor:
    """Compress and decompress RGB images.

    Parameters
    ----------
    image_B3HW
        Float in [0, 1].
    quality_B
        Of each, 1 to 100, as libjpeg counts it.

    Returns
    -------
    Tensor
        B×3×H×W, in whole grey levels.
    """
    height, width = image_B3HW.shape[2:]
    to_ycbcr_33, to_rgb_33, cosine_88, luma_88, chroma_88 = _constants(image_B3HW.device)
    # Twice a block, for chroma has half the resolution.
    padded = F.pad(image_B3HW, (0, -width % (2 * BLOCK), 0, -height % (2 * BLOCK)), mode="replicate")
    ycbcr_B3HW = torch.einsum("ij,bjhw->bihw", to_ycbcr_33, padded * 255)
    percent_B = torch.where(quality_B < 50, 5000 / quality_B, 200 - 2 * quality_B)
    luma_B1HW = _rounded(ycbcr_B3HW[:, :1] - 128, cosine_88, luma_88, percent_B) + 128
    chroma_B2hw = _rounded(F.avg_pool2d(ycbcr_B3HW[:, 1:], 2), cosine_88, chroma_88, percent_B)
    chroma_B2HW = F.interpolate(chroma_B2hw, scale_factor=2.0, mode="bilinear")
    whole_B3HW = torch.cat([luma_B1HW, chroma_B2HW], dim=1)
    made_B3HW = torch.einsum("ij,bjhw->bihw", to_rgb_33, whole_B3HW)
    return made_B3HW[..., :height, :width].round().clamp(0, 255) / 255


def _rounded(plane_BCHW: Tensor, cosine_88: Tensor, table_88: Tensor, percent_B: Tensor) -> Tensor:
    """Round the cosine transform of each block to multiples of the table, scaled by so many percent."""
    step_B88 = ((table_88 * percent_B.view(-1, 1, 1) + 50) / 100).floor().clamp(1, 255)
    blocks = plane_BCHW.unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK)).transpose(3, 4)
    step = step_B88[:, None, None, None]
    rounded = (cosine_88 @ blocks @ cosine_88.T / step).round() * step
    return (cosine_88.T @ rounded @ cosine_88).transpose(3, 4).flatten(4).flatten(2, 3)


@functools.cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the colours' matrix and its inverse, the cosine transform and both tables, once for each device.

    On a GPU an inverse would wait for the device, and nothing could be copied there while a graph is recorded.
    """
    at_8 = torch.arange(float(BLOCK))
    cosine_88 = torch.cos((2 * at_8 + 1) * at_8.view(-1, 1) * math.pi / (2 * BLOCK)) / 2
    cosine_88[0] /= math.sqrt(2)
    ycbcr_33 = torch.tensor(_YCBCR)
    tables = (torch.tensor(table, dtype=torch.float32).view(BLOCK, BLOCK) for table in (_LUMA, _CHROMA))
    return tuple(part.to(device) for part in (ycbcr_33, torch.linalg.inv(ycbcr_33), cosine_88, *tables))
