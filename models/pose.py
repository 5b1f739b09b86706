"""Parts at any angle: found on an empty background, turned to their long axis, and cut out, before a network looks.

A backbone sees other features of the same screw at every angle, and a bank of good features would have to hold them
all. Where the good images show one long part on an empty background, lying anywhere, a model can bring every image to
one pose first: the long axis is that of the second moments of what is not background, the direction that of the third
moment along it. What is cut out is the box that holds the good images' parts; it is enlarged to about as many pixels as
the image has, so most of what the network sees is part. Maps are turned back.

It is plain arithmetic on the batch, so that it is exported with the model. Tensors are named by shape: B images, H×W
pixels of an image, h×w of a cut-out; N good images.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msad.models.base import Cached, make_here
from msad.models.errors import ModelError
from msad.models.synthesis.foreground import border_depth, empty_background

POSES = ("kept", "straightened")

_LONG = 1.5  # deviation along a part's long axis over that across it
_TURNED = 0.9  # mean resultant length of the axes' doubled angles: about 13° of deviation
_MOST, _MARGIN = 0.98, 1 / 32  # of the good parts in the box; of the image's height around them
_ZOOM = 2.0  # larger than this, the cut-out would show nothing but interpolation
_LARGEST = 1 << 13  # pixels of a cut-out's side
_TINY = 1e-6


class _Part(NamedTuple):
    """Where a part lies, in pixels: its weight H×W at every pixel, its centre, and the direction of its long axis."""

    weight_BHW: Tensor
    centre_B2: Tensor
    along_B2: Tensor
    long_B: Tensor
    doubled_B2: Tensor


class Pose(nn.Module):
    """The one pose that images are brought to; `learn` says whether there is one.

    Parameters
    ----------
    multiple
        What both sides of a cut-out, and of an image, are divisible by.

    Attributes
    ----------
    cutout
        Rows and columns of a cut-out; None where images stay as they are.
    """

    def __init__(self, multiple: int) -> None:
        super().__init__()
        self.multiple = multiple
        self.cutout: tuple[int, int] | None = None
        # Of the box its beginning and end along and across the axis in heights of the image, then rows and columns of a
        # cut-out (0: none), and how far a background strays, in [0, 1].
        self.register_buffer("found_7", torch.zeros(7))
        self.register_load_state_dict_post_hook(lambda module, _keys: module._read())

    @torch.no_grad()
    def learn(self, good_NHWC: np.ndarray, cached: Cached = make_here) -> None:
        """Find the pose of good images, uint8 N×H×W×3, or that they have none in common.

        It takes seconds; `cached` may have it from another model that has seen them. To find another one in the same
        images is another version of the features, see `msad.training.batches`.
        """
        name = f"pose of multiples of {self.multiple} on a {self.found_7.device.type}"
        found_7 = cached(name, lambda: {"found": self._find(good_NHWC)})["found"]
        self.found_7.copy_(torch.from_numpy(np.array(found_7)))
        self._read()

    def _find(self, good_NHWC: np.ndarray) -> np.ndarray:
        self.found_7.zero_()
        if background := empty_background(good_NHWC):
            self._learn(good_NHWC, max(background.tolerance, 25) / 255)
        return self.found_7.cpu().numpy()

    def _learn(self, good_NHWC: np.ndarray, tolerance: float) -> None:
        self.found_7[6] = tolerance
        boxes, longs, doubled, borders = [], [], [], []
        for first in range(0, len(good_NHWC), 32):
            images = torch.tensor(good_NHWC[first : first + 32], device=self.found_7.device)
            part = self._part(images.permute(0, 3, 1, 2).float() / 255)
            away_BHW2 = _pixels(part.weight_BHW).unsqueeze(0) - part.centre_B2[:, None, None]
            there_BHW, across_B2 = part.weight_BHW > 0.5, _across(part.along_B2)
            ends = []
            for axis_B2 in (part.along_B2, across_B2):
                place_BHW = (away_BHW2 * axis_B2[:, None, None]).sum(dim=3).masked_fill(~there_BHW, 0)
                ends += [place_BHW.flatten(1).amin(1), place_BHW.flatten(1).amax(1)]
            boxes.append(torch.stack(ends, dim=1))
            longs.append(part.long_B)
            doubled.append(part.doubled_B2)
            borders.append(_frame(part.weight_BHW).mean(dim=1))
        long = torch.cat(longs).quantile(0.1) >= _LONG
        turned = torch.cat(doubled).mean(dim=0).norm() < _TURNED
        inside = torch.cat(borders).quantile(0.9) < 0.05
        if not (long and turned and inside):
            return
        rows, columns = good_NHWC.shape[1:3]
        ends_N4, margin = torch.cat(boxes), _MARGIN * rows
        box = [ends_N4[:, i].quantile(_MOST if i % 2 else 1 - _MOST) + (margin if i % 2 else -margin) for i in range(4)]
        length, width = float(box[1] - box[0]), float(box[3] - box[2])
        zoom = min(_ZOOM, math.sqrt(rows * columns / (length * width)))
        sides = [self.multiple * max(1, round(zoom * side / self.multiple)) for side in (width, length)]
        self.found_7[:6] = torch.tensor([*(float(end) / rows for end in box), *sides])

    def _read(self) -> None:
        rows, columns = (int(side) for side in self.found_7[4:6].tolist())
        if not 0 <= min(rows, columns) <= max(rows, columns) <= _LARGEST:  # a file may hold anything
            raise ModelError(f"a cut-out of {rows} × {columns} pixels, which no image has; do not use this model")
        self.cutout = (rows, columns) if rows else None

    def straighten(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cut-outs, B×C×h×w, and what `put_back` needs, B×6×(H / multiple)×(W / multiple)."""
        height, width = image_BCHW.shape[-2:]
        part = self._part(image_BCHW)
        (x, y), (ux, uy) = part.centre_B2.unbind(1), part.along_B2.unbind(1)
        p0, p1, q0, q1 = (self.found_7[:4] * height).unbind(0)
        # A place (p, q) along and across the axis is the pixel centre + p (ux, uy) + q (-uy, ux). Both ways are written
        # in the coordinates of `affine_grid`, where an image reaches from -1 to 1.
        p, q, half_p, half_q = (p0 + p1) / 2, (q0 + q1) / 2, (p1 - p0) / 2, (q1 - q0) / 2
        forth_B6 = torch.stack(
            [
                *(half_p * ux * 2 / width, -half_q * uy * 2 / width, (x + p * ux - q * uy) * 2 / width - 1),
                *(half_p * uy * 2 / height, half_q * ux * 2 / height, (y + p * uy + q * ux) * 2 / height - 1),
            ],
            dim=1,
        )
        dx, dy = width / 2 - x, height / 2 - y
        back_B6 = torch.stack(
            [
                *(width / 2 * ux / half_p, height / 2 * uy / half_p, (dx * ux + dy * uy - p) / half_p),
                *(-width / 2 * uy / half_q, height / 2 * ux / half_q, (dy * ux - dx * uy - q) / half_q),
            ],
            dim=1,
        )
        size = [image_BCHW.shape[0], image_BCHW.shape[1], *self.cutout]
        grid_BHW2 = F.affine_grid(forth_B6.view(-1, 2, 3), size, align_corners=False)
        cut_BChw = F.grid_sample(image_BCHW, grid_BHW2, padding_mode="border", align_corners=False)
        places = height // self.multiple, width // self.multiple
        return cut_BChw, back_B6[:, :, None, None].expand(-1, -1, *places)

    def put_back(self, map_B1hw: Tensor, back_B6HW: Tensor) -> Tensor:
        """Turn maps of cut-outs back to the images, B×1×H×W; 0 outside of the cut-out."""
        size = [map_B1hw.shape[0], 1, *(self.multiple * places for places in back_B6HW.shape[-2:])]
        grid_BHW2 = F.affine_grid(back_B6HW[:, :, 0, 0].reshape(-1, 2, 3), size, align_corners=False)
        return F.grid_sample(map_B1hw, grid_BHW2, padding_mode="zeros", align_corners=False)

    def _part(self, image_BCHW: Tensor) -> _Part:
        """Find what is not background: the border's median colour, as far as a background strays."""
        border_BCK = _frame(image_BCHW)
        colour_BC = border_BCK.sort(dim=2).values[:, :, border_BCK.shape[2] // 2]
        away_BHW = (image_BCHW - colour_BC[:, :, None, None]).abs().amax(dim=1)
        away_BHW = F.avg_pool2d(away_BHW.unsqueeze(1), 3, stride=1, padding=1, count_include_pad=False)[:, 0]
        tolerance = self.found_7[6]
        weight_BHW = ((away_BHW - tolerance) / tolerance.clamp(min=_TINY)).clamp(0, 1)
        share_BHW = weight_BHW / (weight_BHW.sum(dim=(1, 2), keepdim=True) + _TINY)
        pixels_HW2 = _pixels(weight_BHW)
        centre_B2 = (share_BHW.unsqueeze(3) * pixels_HW2).sum(dim=(1, 2))
        x_BHW, y_BHW = (pixels_HW2 - centre_B2[:, None, None]).unbind(3)
        xx_B, yy_B, xy_B = ((share_BHW * m).sum(dim=(1, 2)) for m in (x_BHW**2, y_BHW**2, x_BHW * y_BHW))
        # The axis has half the angle whose cosine and sine are these.
        difference_B = ((xx_B - yy_B).square() + (2 * xy_B).square()).sqrt()
        cosine_B = (xx_B - yy_B) / (difference_B + _TINY)
        sine_B = 2 * xy_B / (difference_B + _TINY)
        ux_B = ((1 + cosine_B) / 2).clamp(0, 1).sqrt()
        uy_B = ((1 - cosine_B) / 2).clamp(0, 1).sqrt() * torch.where(sine_B < 0, -1.0, 1.0)
        along_BHW = x_BHW * ux_B[:, None, None] + y_BHW * uy_B[:, None, None]
        skew_B = (share_BHW * along_BHW**3).sum(dim=(1, 2))
        along_B2 = torch.stack([ux_B, uy_B], dim=1) * torch.where(skew_B < 0, -1.0, 1.0)[:, None]
        long_B = ((xx_B + yy_B + difference_B) / (xx_B + yy_B - difference_B).clamp(min=_TINY)).sqrt()
        return _Part(weight_BHW, centre_B2, along_B2, long_B, torch.stack([cosine_B, sine_B], dim=1))


def _across(along_B2: Tensor) -> Tensor:
    return torch.stack([-along_B2[:, 1], along_B2[:, 0]], dim=1)


def _pixels(like_BHW: Tensor) -> Tensor:
    """Return the x and y of every pixel's centre, H×W×2."""
    rows, columns = (
        torch.arange(side, device=like_BHW.device, dtype=like_BHW.dtype) + 0.5 for side in like_BHW.shape[-2:]
    )
    return torch.stack(torch.broadcast_tensors(columns[None], rows[:, None]), dim=2)


def _frame(image: Tensor) -> Tensor:
    """Return the pixels of an even frame, the last dimensions H×W as one."""
    depth = border_depth(*image.shape[-2:])
    return torch.cat(
        [
            *(part.flatten(-2) for part in (image[..., :depth, :], image[..., -depth:, :])),
            *(part.flatten(-2) for part in (image[..., depth:-depth, :depth], image[..., depth:-depth, -depth:])),
        ],
        dim=-1,
    )
