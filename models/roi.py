"""Region of interest: the part of every image that counts. What a map says outside of it is heard by nothing.

Shapes: B images, H×W pixels of a map, P of them inside of the region.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from msad.models.errors import ModelError


@dataclass(frozen=True, eq=False)
class Roi:
    """Which pixels of a map are inside, bool 1×H×W, on any device.

    Raises
    ------
    ModelError
        It is of another kind, or no pixel is inside.
    """

    inside_1HW: Tensor

    def __post_init__(self) -> None:
        inside = self.inside_1HW
        if inside.dtype != torch.bool or inside.ndim != 3 or len(inside) != 1 or not inside.any():
            raise ModelError(f"a region of interest is bool 1×H×W with a pixel inside, not {tuple(inside.shape)}")
        _ = self.places_P  # now: a graph that is exported must not look for them

    @functools.cached_property
    def places_P(self) -> Tensor:
        """Where the pixels inside are in a flattened map."""
        return self.inside_1HW.flatten().nonzero()[:, 0]

    @property
    def share(self) -> float:
        """Of the image, in (0, 1]."""
        return len(self.places_P) / self.inside_1HW.numel()

    def pixels(self, map_B1HW: Tensor) -> Tensor:
        """Return what is inside, B×P."""
        return map_B1HW.flatten(1).index_select(1, self.places_P.to(map_B1HW.device))

    def lowered(self, map_B1HW: Tensor) -> Tensor:
        """Return maps that are outside as low as their lowest pixel inside, so that no cut finds anything there."""
        lowest_B111 = self.pixels(map_B1HW).amin(dim=1).view(-1, 1, 1, 1)
        return torch.where(self.inside_1HW.to(map_B1HW.device), map_B1HW, lowest_B111)
