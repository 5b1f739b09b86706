"""Real defects for training: cut out by their masks and pasted on good images, elsewhere and mirrored by chance.

Only where a user asks for it, of defects that judge nothing. They stand in for some of the synthetic corruption
(`corruptions`), so a network that restores images, or marks what was changed, learns from them without anything new.

Tensors are named by shape: B images of a batch, K defects, H×W pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from msad.models.defects import KnownDefects
from msad.models.synthesis.appearance import Appearance
from msad.models.synthesis.corruptions import SMALLEST_CHANGE, Draws, picked, product_cells

SHARE = 0.5
"""Of the corrupted images that get a real defect instead."""


class DefectPaster:
    """Gives some corrupted images of a batch a real defect instead; the same generator state, the same ones.

    Parameters
    ----------
    defects
        What is pasted; each has a mask.
    view
        Height and width of the batches' images; of a larger image what is around its defect is used.
    good
        Appearance of the product, to paste on it where it has an empty background; None pastes anywhere.
    device
        Of the batches.
    """

    def __init__(
        self, defects: KnownDefects, view: tuple[int, int], good: Appearance | None, device: torch.device
    ) -> None:
        cut = [_centred(image, mask, view) for image, mask in zip(defects.images, defects.masks, strict=True)]
        self._bank_K4HW = torch.stack(cut).to(device)
        self._background = None if good is None else good.background

    @torch.no_grad()
    def __call__(
        self,
        batch_BCHW: Tensor,
        corrupted_BCHW: Tensor,
        mask_B1HW: Tensor,
        generator: torch.Generator,
        inside_B1HW: Tensor | None = None,
        part: slice = slice(None),
    ) -> tuple[Tensor, Tensor]:
        """Return what `Corruptor` has made of a batch, or of a part of it, some of it replaced.

        The parameters are those of `Corruptor`, and what it returned of the part. Nothing waits for the device.
        """
        draw, clean_BCHW = Draws(batch_BCHW, generator, part), batch_BCHW[part]
        inside_B1HW = None if inside_B1HW is None else inside_B1HW[part]
        background = self._background
        cells = None if background is None else product_cells(clean_BCHW, background.tolerance / 255, draw.cells)
        shift = draw.shift(draw.place(cells, inside_B1HW)[0])
        plane_B4 = 4 * draw.index(len(self._bank_K4HW))[:, None] + torch.arange(4, device=draw.device)
        patch_B4HW = picked(self._bank_K4HW.flatten(0, 1), plane_B4, *shift).to(clean_BCHW)
        shape_B1HW = patch_B4HW[:, 3:] if inside_B1HW is None else patch_B4HW[:, 3:] * inside_B1HW
        pasted_BCHW = torch.lerp(clean_BCHW, patch_B4HW[:, :3], shape_B1HW)
        changed_B1HW = (pasted_BCHW - clean_BCHW).abs().amax(dim=1, keepdim=True) > SMALLEST_CHANGE
        instead_B111 = (mask_B1HW.amax(dim=(2, 3), keepdim=True) > 0) & (draw() < SHARE)
        return (
            torch.where(instead_B111, torch.where(changed_B1HW, pasted_BCHW, clean_BCHW), corrupted_BCHW),
            torch.where(instead_B111, changed_B1HW.to(mask_B1HW), mask_B1HW),
        )


def _centred(image_HWC: np.ndarray, mask_HW: np.ndarray, view: tuple[int, int]) -> Tensor:
    """Return colours and a mask with soft edges, 4×H×W, rolled until the middle of the defect is in the corner."""
    planes = np.concatenate(
        [np.asarray(image_HWC) / np.float32(255), np.asarray(mask_HW, np.float32)[..., None]], axis=2
    )
    planes_4HW = torch.from_numpy(planes).permute(2, 0, 1)
    for axis, (side, seen) in enumerate(zip(mask_HW.shape, view, strict=True)):
        there = np.flatnonzero(mask_HW.any(axis=1 - axis))
        middle = int(there[0] + there[-1]) // 2 if len(there) else side // 2
        rolled = planes_4HW.roll(seen // 2 - middle, dims=1 + axis)
        planes_4HW = rolled.narrow(1 + axis, 0, seen).roll(-(seen // 2), dims=1 + axis)
    soft_1HW = F.avg_pool2d(F.pad(planes_4HW[None, 3:], (1, 1, 1, 1), mode="circular"), 3, stride=1)[0]
    return torch.cat([planes_4HW[:3], soft_1HW * planes_4HW[3:]])
