"""A bank of periodic Perlin noise, by rank: thresholding a field at 1 - a marks exactly the share a of its pixels.

Perlin, "An image synthesizer", SIGGRAPH 1985. Frequencies per axis as in DRAEM (Zavrtanik et al., arXiv 2108.07610),
whose thresholds at a fixed height are replaced by ranks, so that the marked area is a choice and never empty. The
fields tile, so rolled copies are new fields without a seam.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

OCTAVES = (1, 5)  # cells per axis are 2**1 to 2**5


def perlin_bank(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Return `count` float32 fields, count×1×height×width, whose values are their ranks in [0, 1).

    Parameters
    ----------
    count, height, width
        Fields and their sides in pixels.
    seed
        Decides the fields; the same seed and size give the same ones.
    """
    generator = torch.Generator().manual_seed(seed)
    fields = [_perlin(height, width, generator) for _ in range(count)]
    order = torch.stack(fields).flatten(1).argsort(dim=1)
    ranks = torch.arange(height * width, dtype=torch.float32).expand_as(order) / (height * width)
    return torch.empty_like(ranks).scatter_(1, order, ranks).view(count, 1, height, width)


def _perlin(height: int, width: int, generator: torch.Generator) -> Tensor:
    low, high = OCTAVES
    rows, columns = (2 ** torch.randint(low, high + 1, (2,), generator=generator)).tolist()
    angle = torch.rand(rows, columns, generator=generator) * (2 * math.pi)
    slope_y, slope_x = angle.sin(), angle.cos()
    y, x = torch.arange(height) * rows / height, torch.arange(width) * columns / width
    y0, x0 = y.long(), x.long()
    dy, dx = (y - y0)[:, None], (x - x0)[None, :]

    def corner(down: int, right: int) -> Tensor:
        at = ((y0 + down) % rows)[:, None], ((x0 + right) % columns)[None, :]
        return slope_y[at] * (dy - down) + slope_x[at] * (dx - right)

    fade_y, fade_x = (t**3 * (t * (6 * t - 15) + 10) for t in (dy, dx))
    top, bottom = torch.lerp(corner(0, 0), corner(0, 1), fade_x), torch.lerp(corner(1, 0), corner(1, 1), fade_x)
    return torch.lerp(top, bottom, fade_y)
