"""Synthetic corruption of good images for training, batched on the images' device.

Three families, disjoint from those that validate a model (`models.synthetic_defects`):

- stain: an irregular ellipse of one colour with a rim from sharp to soft. Collin and De Vleeschouwer (AESc, arXiv
  2008.12977); here in colour, its contour made irregular by noise.
- perlin: a Perlin noise mask filled with a photograph, an image of the batch, or a colour. Zavrtanik et al. (DRAEM,
  arXiv 2108.07610); here with masks by area and a fixed bank of noise.
- cutpaste: a rectangle from another place of this or another image. Li et al. (CutPaste, arXiv 2104.04015).

All are blended with an opacity that is drawn per image, so that defects range from faint to plain, and some images stay
clean, so that a model learns to leave good parts alone. Everything is computed for all images and then selected: no
step waits for the device.

Tensors are named by shape: B images of a batch, C channels, H×W pixels, N images of a bank.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from models.errors import ModelError
from models.noise import perlin_bank

NOISE_FIELDS = 32
FAINTEST = 0.2  # lowest opacity at strength 1, as in DRAEM
STAIN_AXES = (0.01, 0.12)  # semi-axes as shares of the shorter side, as in AESc
PERLIN_AREA = (0.005, 0.2)  # shares of the image
PATCH_AREA = (0.005, 0.1)
PATCH_ASPECT = (0.3, 3.3)
TEXTURE_SHARE, COLOUR_SHARE = 0.5, 0.2  # of the Perlin masks' fillings; the rest is filled from the batch
SMALLEST_CHANGE = 2 / 255  # a pixel counts as changed above this


@dataclass(frozen=True, kw_only=True)
class CorruptionConfig:
    """How often, how strongly and how images are corrupted.

    Parameters
    ----------
    probability
        Share of the images that are corrupted at all, in [0, 1].
    strength
        Scales the opacity, which is drawn from [0.2, 1]; in (0, 1].
    stain, perlin, cutpaste
        Relative weights of the families, 0 or more; one must be above 0.

    Raises
    ------
    ModelError
        All values out of range, in one message.
    """

    probability: float = 0.5
    strength: float = 1.0
    stain: float = 1.0
    perlin: float = 1.0
    cutpaste: float = 1.0

    def __post_init__(self) -> None:
        families = self.families
        problems = [
            f"{name} is {value!r}; it must be {rule}"
            for name, value, allowed, rule in (
                ("probability", self.probability, 0 <= self.probability <= 1, "between 0 and 1"),
                ("strength", self.strength, 0 < self.strength <= 1, "above 0 and at most 1"),
                ("stain, perlin, cutpaste", families, min(families) >= 0 < max(families), "0 or more, one above 0"),
            )
            if not allowed
        ]
        if problems or not all(math.isfinite(value) for value in dataclasses.astuple(self)):
            raise ModelError(f"corruption: {'; '.join(problems) or 'a value is not finite'}")

    @property
    def families(self) -> tuple[float, float, float]:
        """The weights of stain, perlin and cutpaste."""
        return self.stain, self.perlin, self.cutpaste


class Corruptor:
    """Makes corrupted copies of a batch; the same generator state gives the same copies.

    Parameters
    ----------
    config
        See `CorruptionConfig`.
    textures_NCHW
        Float RGB photographs in [0, 1] to fill Perlin masks with, of any size; None fills from the batch instead.

    Raises
    ------
    ModelError
        The textures are no N×3×H×W tensor of at least one image.
    """

    def __init__(self, config: CorruptionConfig, textures_NCHW: Tensor | None = None) -> None:
        if textures_NCHW is not None and (
            textures_NCHW.ndim != 4 or textures_NCHW.shape[1] != 3 or not len(textures_NCHW)
        ):
            raise ModelError(
                f"textures of shape {tuple(textures_NCHW.shape)}: N×3×H×W (RGB) is needed, with N at least 1"
            )
        self.config = config
        self._textures_NCHW = textures_NCHW
        self._banks: dict[tuple, tuple[Tensor, Tensor | None]] = {}

    @torch.no_grad()
    def __call__(self, clean_BCHW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Corrupt a batch.

        Parameters
        ----------
        clean_BCHW
            Float RGB images in [0, 1].
        generator
            Source of all randomness, on the images' device.

        Returns
        -------
        corrupted_BCHW
            New images in [0, 1], equal to the clean ones wherever the mask is 0.
        mask_B1HW
            Float: 1 where some channel changed by more than 2/255, else 0.
        """
        draw = _Draws(clean_BCHW, generator)
        noise_N1HW, textures_NCHW = self._bank(clean_BCHW)
        noise_B1HW = draw.shifted(noise_N1HW[draw.index(len(noise_N1HW))])
        stain, perlin, cutpaste = self._families(draw)

        shape_B1HW = torch.where(stain, _stain(draw, noise_B1HW), _patch(draw))
        shape_B1HW = torch.where(perlin, (noise_B1HW >= 1 - draw.log(*PERLIN_AREA)).to(shape_B1HW), shape_B1HW)
        filling_BCHW = _filling(draw, clean_BCHW, textures_NCHW, plain=stain, copied=cutpaste)

        opacity = draw(FAINTEST, 1) * self.config.strength * (draw() < self.config.probability)
        blended_BCHW = torch.lerp(clean_BCHW, filling_BCHW, shape_B1HW * opacity)
        changed_B1HW = (blended_BCHW - clean_BCHW).abs().amax(dim=1, keepdim=True) > SMALLEST_CHANGE
        return torch.where(changed_B1HW, blended_BCHW, clean_BCHW), changed_B1HW.to(clean_BCHW)

    def _families(self, draw: _Draws) -> tuple[Tensor, Tensor, Tensor]:
        stain, perlin, cutpaste = self.config.families
        total, choice = stain + perlin + cutpaste, draw()
        is_stain, is_cutpaste = choice < stain / total, choice >= (stain + perlin) / total
        return is_stain, ~(is_stain | is_cutpaste), is_cutpaste

    def _bank(self, clean_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """The noise and the textures at the images' size and device, made once."""
        size, device = tuple(clean_BCHW.shape[-2:]), clean_BCHW.device
        if (size, device) not in self._banks:
            textures_NCHW = self._textures_NCHW
            if textures_NCHW is not None:
                textures_NCHW = textures_NCHW.to(clean_BCHW)
                if textures_NCHW.shape[-2:] != size:
                    textures_NCHW = F.interpolate(textures_NCHW, size, mode="bilinear", antialias=True).clamp(0, 1)
            self._banks[size, device] = perlin_bank(NOISE_FIELDS, *size).to(device), textures_NCHW
        return self._banks[size, device]


class _Draws:
    """Random numbers for a batch, one per image and call, of shape B×1×1×1."""

    def __init__(self, batch_BCHW: Tensor, generator: torch.Generator) -> None:
        self.count, _, self.height, self.width = batch_BCHW.shape
        self.device, self.generator = batch_BCHW.device, generator

    def __call__(self, low: float = 0, high: float = 1, channels: int = 1) -> Tensor:
        unit = torch.rand(self.count, channels, 1, 1, generator=self.generator, device=self.device)
        return low + (high - low) * unit

    def log(self, low: float, high: float) -> Tensor:
        """Uniform in the logarithm: small values as often as large ones."""
        return self(math.log(low), math.log(high)).exp()

    def index(self, length: int) -> Tensor:
        """Shape B, below `length`."""
        return torch.randint(length, (self.count,), generator=self.generator, device=self.device)

    def grid(self) -> tuple[Tensor, Tensor]:
        """Rows 1×1×H×1 and columns 1×1×1×W."""
        rows, columns = torch.arange(self.height, device=self.device), torch.arange(self.width, device=self.device)
        return rows.view(1, 1, -1, 1), columns.view(1, 1, 1, -1)

    def shifted(self, image_BCHW: Tensor) -> Tensor:
        """Each image rolled by a random way and mirrored by chance, along both axes."""
        batch = torch.arange(self.count, device=self.device).view(-1, 1, 1)
        rows, columns = (
            ((position * (1 - 2 * (self() < 0.5).long()) + (self() * length).long()) % length).squeeze(1)
            for position, length in zip(self.grid(), (self.height, self.width), strict=True)
        )
        return image_BCHW[batch, :, rows, columns].permute(0, 3, 1, 2)


def _stain(draw: _Draws, noise_B1HW: Tensor) -> Tensor:
    rows, columns = draw.grid()
    # Centred on a pixel and at least a pixel wide, so that no stain falls between pixels.
    down, right = rows - (draw() * draw.height).floor(), columns - (draw() * draw.width).floor()
    angle = draw(0, math.pi)
    long, short = ((draw(*STAIN_AXES) * min(draw.height, draw.width)).clamp(min=1) for _ in range(2))
    along, across = down * angle.cos() + right * angle.sin(), right * angle.cos() - down * angle.sin()
    radius_B1HW = ((along / long).square() + (across / short).square()).sqrt()
    contour_B1HW = 1 + draw(0.2, 1) * (noise_B1HW - 0.5)
    return ((contour_B1HW - radius_B1HW) / draw.log(0.05, 0.5)).clamp(0, 1)


def _patch(draw: _Draws) -> Tensor:
    rows, columns = draw.grid()
    area, aspect = draw.log(*PATCH_AREA) * draw.height * draw.width, draw.log(*PATCH_ASPECT)
    height = (area * aspect).sqrt().clamp(1, draw.height).round()
    width = (area / aspect).sqrt().clamp(1, draw.width).round()
    top, left = (draw() * (draw.height - height + 1)).floor(), (draw() * (draw.width - width + 1)).floor()
    return ((rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)).float()


def _filling(
    draw: _Draws, clean_BCHW: Tensor, textures_NCHW: Tensor | None, *, plain: Tensor, copied: Tensor
) -> Tensor:
    """What shows in the shapes: a colour if `plain`, a place of the batch if `copied`, else either or a texture."""
    choice = draw()
    pasted_BCHW = clean_BCHW[draw.index(len(clean_BCHW))]
    if textures_NCHW is not None:
        textured = (choice < TEXTURE_SHARE) & ~copied
        pasted_BCHW = torch.where(textured, textures_NCHW[draw.index(len(textures_NCHW))], pasted_BCHW)
    pasted_BCHW = draw.shifted(pasted_BCHW)
    # A copied patch keeps its own light; other fillings vary in it, so that few photographs go a long way.
    lit_BCHW = (pasted_BCHW * draw(0.5, 1.5) + draw(-0.2, 0.2)).clamp(0, 1)
    pasted_BCHW = torch.where(copied, pasted_BCHW, lit_BCHW)
    colour_BC11 = torch.lerp(draw(), draw(channels=3), draw())  # from grey to vivid
    flat = plain | ((choice > 1 - COLOUR_SHARE) & ~copied)
    filling_BCHW = torch.where(flat, colour_BC11, pasted_BCHW)
    # In grey photographs a coloured defect would be given away by its colour alone.
    grey = (clean_BCHW.amax(dim=1) - clean_BCHW.amin(dim=1)).amax(dim=(1, 2)).view(-1, 1, 1, 1) < SMALLEST_CHANGE
    return torch.where(grey, filling_BCHW.mean(dim=1, keepdim=True), filling_BCHW)
