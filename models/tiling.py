"""Large images tile by tile: a network is trained on tiles, looks at overlapping tiles, and its maps are stitched.

A photograph of 4000 pixels with a defect of ten cannot be shrunk to what a network takes, and does not fit into memory
otherwise. So the network sees tiles at the image's full resolution, a bounded number at once. Where two tiles overlap,
a tile's outer quarter of the overlap is left out, because there the network saw a border that is none; over the middle
half one map is faded into the other by a raised cosine. So a map has no seams; and where the network sees less far than
a quarter of the overlap, it is the map of the whole image.

Tensors are named by shape: B images or tiles, C channels, H×W pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from msad.models.base import AnomalyModel, Encoded
from msad.models.errors import ModelError

Tile = tuple[slice, slice, Tensor, Tensor]
"""Rows and columns of a tile, and what its map counts in each of them, H×1 and W."""

_SMALLEST = 16
PIXELS_AT_ONCE = 1 << 20
"""Pixels of the tiles that go through the network at once: 16 tiles of 256 × 256."""


@dataclass(frozen=True, kw_only=True)
class TilingConfig:
    """How an image is cut.

    Parameters
    ----------
    tile
        Side of a tile in pixels at the model's image size; 0: the network sees whole images.
    overlap
        Pixels that neighbouring tiles share at least, up to half a tile; None: a quarter of a tile.

    Raises
    ------
    ModelError
        All values out of range, in one message.
    """

    tile: int = 0
    overlap: int | None = None

    def __post_init__(self) -> None:
        given = [self.tile] if self.overlap is None else [self.tile, self.overlap]
        if not all(isinstance(value, Integral) and not isinstance(value, bool) for value in given):
            raise ModelError(f"tiling: tile {self.tile!r}, overlap {self.overlap!r}; they are whole numbers of pixels")
        if self.tile < 0 or 0 < self.tile < _SMALLEST:
            raise ModelError(f"tiling: tile is {self.tile}; it must be at least {_SMALLEST} pixels, or 0 for no tiles")
        if not 0 <= self.pixels <= self.tile // 2:
            raise ModelError(f"tiling: overlap is {self.overlap}; it must be 0 to half a tile, {self.tile // 2} pixels")

    @property
    def pixels(self) -> int:
        """The overlap in pixels."""
        return self.tile // 4 if self.overlap is None else self.overlap


def starts(length: int, tile: int, overlap: int, multiple: int = 1) -> list[int]:
    """Place tiles along a side: as few as overlap by at least `overlap`, evenly, at multiples of `multiple`.

    A network with strides sees an image the same way at every multiple of them, so its tiles start there.

    Parameters
    ----------
    length, tile
        Pixels; both divisible by `multiple`.

    Raises
    ------
    ModelError
        A tile is larger than the image, or something is not divisible.
    """
    if tile > length or length % multiple or tile % multiple:
        raise ModelError(f"tiles of {tile} pixels do not fit {length} pixels in steps of {multiple}")
    step = max(multiple, (tile - overlap) // multiple * multiple)
    steps = math.ceil((length - tile) / step)
    return (
        [multiple * round(index * (length - tile) / (steps * multiple)) for index in range(steps + 1)] if steps else [0]
    )


def weights(places: list[int], tile: int) -> Tensor:
    """Return what each tile counts along a side, float32 T×tile; at every pixel of the image they add up to 1."""
    pixel = torch.arange(tile, dtype=torch.float64) + 0.5
    rows = []
    for index, place in enumerate(places):
        row = torch.ones(tile, dtype=torch.float64)
        if index:
            row *= _rise(pixel, places[index - 1] + tile - place)
        if index + 1 < len(places):
            row *= _rise(tile - pixel, place + tile - places[index + 1])
        rows.append(row)
    total = torch.zeros(places[-1] + tile, dtype=torch.float64)  # not 1 where three tiles meet
    for place, row in zip(places, rows, strict=True):
        total[place : place + tile] += row
    return torch.stack([row / total[place : place + tile] for place, row in zip(places, rows, strict=True)]).float()


def _rise(pixel: Tensor, overlap: int) -> Tensor:
    """Rise from 0 to 1 over the middle half of an overlap."""
    share = ((pixel - overlap / 4) / max(overlap / 2, 1e-9)).clamp(0, 1)
    return (share * (math.pi / 2)).sin().square()


def tiled(model: AnomalyModel, config: TilingConfig) -> AnomalyModel:
    """Return the model as it is where there are no tiles, else one that looks at images tile by tile."""
    return Tiled(model, config) if config.tile else model


class Tiled(AnomalyModel):
    """A model that learns from tiles, and gives the stitched maps of whole images of any size.

    Parameters
    ----------
    model
        Any architecture; its losses get tiles, as images or encoded.
    config
        `config.tile` must not be 0.

    Raises
    ------
    ModelError
        The model can't work on tiles of this size.
    """

    def __init__(self, model: AnomalyModel, config: TilingConfig) -> None:
        super().__init__()
        self.model, self.tile, self.overlap = model, config.tile, config.pixels
        self.loss_terms, self.costly_terms = model.loss_terms, model.costly_terms
        self.default_loss_weights, self.map_names = model.default_loss_weights, model.map_names
        self.fixed_scoring = model.fixed_scoring
        self.has_frozen_encoder, self.size_multiple = model.has_frozen_encoder, model.size_multiple
        self.trained_stages = model.trained_stages
        self.pretrained = model.pretrained
        self._plans: dict[tuple[int, int, torch.device], list[Tile]] = {}
        if self.tile % self.size_multiple:
            raise ModelError(
                f"tiles of {self.tile} pixels do not fit {type(model).__name__}: the side must be divisible by "
                f"{self.size_multiple}; change tiling/tile, or lower the depth"
            )

    def encode(self, image_BCHW: Tensor) -> Encoded:
        """Encode tiles."""
        return self.model.encode(image_BCHW)

    def adapt(self, clean: object) -> None:
        self.model.adapt(clean)

    def adapt_inside(self, clean: object, inside: object) -> None:
        self.model.adapt_inside(clean, inside)

    def _losses(self, clean: Encoded, corrupted: Encoded, mask_B1HW: Tensor, terms: list[str]) -> dict[str, Tensor]:
        return self.model._losses(clean, corrupted, mask_B1HW, terms)

    @torch.no_grad()
    def anomaly_maps(self, image_BCHW: Tensor) -> dict[str, Tensor]:
        """Return the stitched maps of whole images; see `AnomalyModel.anomaly_maps`."""
        self.check_size(image_BCHW)
        # One by one bounds the memory; an exported graph leaves the number of images open.
        each = [image_BCHW] if torch.compiler.is_exporting() else image_BCHW.split(1)
        parts = [self._maps(image) for image in each]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _maps(self, image_BCHW: Tensor) -> dict[str, Tensor]:
        height, width = image_BCHW.shape[-2:]
        plan, tile, stitched = self._plan(height, width, image_BCHW.device), self.tile, {}
        at_once = max(1, PIXELS_AT_ONCE // tile**2)
        for first in range(0, len(plan), at_once):
            chosen = plan[first : first + at_once]
            tiles = torch.cat([image_BCHW[..., rows, columns] for rows, columns, *_ in chosen])
            maps = self.model.anomaly_maps(tiles.contiguous(memory_format=torch.channels_last))
            for name, map_B1HW in maps.items():
                whole_B1HW = stitched.setdefault(name, torch.zeros_like(image_BCHW[:, :1]))
                parts = map_B1HW.view(len(chosen), -1, 1, tile, tile)
                for (rows, columns, down_H1, right_W), part_B1HW in zip(chosen, parts, strict=True):
                    whole_B1HW[..., rows, columns] += part_B1HW * down_H1 * right_W
        return stitched

    @torch.inference_mode(False)  # kept for export too, whoever asks first
    def _plan(self, height: int, width: int, device: torch.device) -> list[Tile]:
        """Return the tiles of an image of this size, made once."""
        key = height, width, device
        if key not in self._plans:
            places = [starts(side, self.tile, self.overlap, self.size_multiple) for side in (height, width)]
            down, right = (weights(along, self.tile).to(device) for along in places)
            self._plans[key] = [
                (slice(top, top + self.tile), slice(left, left + self.tile), down_H[:, None], right_W)
                for top, down_H in zip(places[0], down, strict=True)
                for left, right_W in zip(places[1], right, strict=True)
            ]
        return self._plans[key]
