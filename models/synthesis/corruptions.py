"""Synthetic corruption of good images for training, batched on the images' device.

Three families, disjoint from those that validate a model (`msad.models.synthesis.synthetic_defects`):

- stain: an irregular ellipse of one colour with a rim from sharp to soft. Collin and De Vleeschouwer (AESc, arXiv
  2008.12977); here in colour, its contour made irregular by noise.
- perlin: a Perlin noise mask with a sharp or soft rim, filled with a photograph (turned, scaled, lit, inverted, its
  channels permuted), an image of the batch, or a colour. Zavrtanik et al. (DRAEM, arXiv 2108.07610); here with masks by
  area and a fixed bank of noise.
- cutpaste: a rectangle from another place of this or another image. Li et al. (CutPaste, arXiv 2104.04015).

On a product with an empty background most of the defects lie on the product, as those of GLASS do (Chen et al., arXiv
2407.09359): a background that never has a defect teaches nothing.

All are blended with an opacity that is drawn per image, so that defects range from faint to plain, and some images stay
clean, so that a model learns to leave good parts alone. Everything is computed for all images and then selected: no
step waits for the device.

Tensors are named by shape: B images of a batch, C channels, H×W pixels, N images of a bank.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from msad.models.errors import ModelError
from msad.models.synthesis.appearance import Appearance, appearance_of
from msad.models.synthesis.noise import perlin_bank

NOISE_FIELDS = 64
NOISE_VERSION = 1  # to be raised whenever `noise_bank` gives other fields
FAINTEST = 0.2  # lowest opacity at strength 1, as in DRAEM
STAIN_AXES = (0.01, 0.12)  # semi-axes as shares of the shorter side, as in AESc
PERLIN_AREA = (0.005, 0.3)  # shares of the image
PERLIN_REACH = (0.05, 1.5)  # how far from its centre a mask reaches, as shares of the shorter side
PERLIN_RIM = (0.01, 1.0)  # shares of the area over which a mask rises to its full opacity
PATCH_AREA = (0.005, 0.1)
PATCH_ASPECT = (0.3, 3.3)
TEXTURE_SHARE, COLOUR_SHARE = 0.6, 0.15  # of the Perlin masks' fillings; the rest is filled from the batch
TEXTURE_SCALE = (0.5, 2.0)
INVERTED_SHARE = 0.25  # of the fillings
PRODUCT_SHARE = 0.85  # of the defects lie on the product where there is an empty background
GRID = 32  # cells per side of the map that says where the product is
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
    perlin: float = 2.0
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
        RGB photographs to fill Perlin masks with, of any size, uint8 or float in [0, 1]; None fills from the batch
        instead.
    good
        uint8 images N×H×W×3 of the product, or their appearance, to see whether it has an empty background; None puts
        defects everywhere.
    noise_N1HW
        What `noise_bank` gives at the size of the images, where it is there already; None makes it at the first batch.

    Raises
    ------
    ModelError
        The textures are no N×3×H×W tensor of at least one image.
    """

    def __init__(
        self,
        config: CorruptionConfig,
        textures_NCHW: Tensor | None = None,
        good: np.ndarray | Appearance | None = None,
        noise_N1HW: Tensor | None = None,
    ) -> None:
        if textures_NCHW is not None and (
            textures_NCHW.ndim != 4 or textures_NCHW.shape[1] != 3 or not len(textures_NCHW)
        ):
            raise ModelError(
                f"textures of shape {tuple(textures_NCHW.shape)}: N×3×H×W (RGB) is needed, with N at least 1"
            )
        self.config = config
        self._textures_NCHW, self._noise_N1HW = textures_NCHW, noise_N1HW
        self._background = None if good is None else appearance_of(good).background
        self._banks: dict[tuple, tuple[Tensor, Tensor | None]] = {}

    @torch.no_grad()
    def __call__(
        self,
        batch_BCHW: Tensor,
        generator: torch.Generator,
        inside_B1HW: Tensor | None = None,
        part: slice = slice(None),
    ) -> tuple[Tensor, Tensor]:
        """Corrupt a batch, or a part of it.

        Parameters
        ----------
        batch_BCHW
            Float RGB images in [0, 1].
        generator
            Source of all randomness, on the images' device.
        inside_B1HW
            1 where an image of the batch may be changed, else 0; None: everywhere.
        part
            Which images to corrupt; they become what they would with all of the batch.

        Returns
        -------
        corrupted_BCHW
            New images in [0, 1], equal to the clean ones wherever the mask is 0.
        mask_B1HW
            Float: 1 in a defect where some channel changed by more than 2/255 within 2 pixels, else 0.
        """
        draw, clean_BCHW = Draws(batch_BCHW, generator, part), batch_BCHW[part]
        inside_B1HW = None if inside_B1HW is None else inside_B1HW[part]
        noise_N1HW, textures_NCHW = self._bank(clean_BCHW)
        product_B1hw = None
        if self._background is not None:
            product_B1hw = product_cells(clean_BCHW, self._background.tolerance / 255, draw.cells)
        centre, allowed_B1HW = draw.place(product_B1hw, inside_B1HW)
        noise_B1HW = picked(noise_N1HW.flatten(0, 1), draw.index(len(noise_N1HW))[:, None], *draw.shift(centre))
        stain, perlin, cutpaste = self._families(draw)

        shape_B1HW = torch.where(stain, _stain(draw, noise_B1HW, centre), _patch(draw, centre))
        shape_B1HW = torch.where(perlin, _blobs(draw, noise_B1HW, centre) * allowed_B1HW, shape_B1HW)
        filling_BCHW = _filling(draw, batch_BCHW, textures_NCHW, plain=stain, copied=cutpaste)

        if inside_B1HW is not None:
            shape_B1HW = shape_B1HW * inside_B1HW
        opacity = draw(FAINTEST, 1) * self.config.strength * (draw() < self.config.probability)
        shape_B1HW = shape_B1HW * opacity
        blended_BCHW = torch.lerp(clean_BCHW, filling_BCHW, shape_B1HW)
        change_B1HW = (blended_BCHW - clean_BCHW).abs().amax(dim=1, keepdim=True)
        # A pixel that looks as before by chance, amid others that do not, is a part of the defect all the same.
        changed_B1HW = _grown(change_B1HW > SMALLEST_CHANGE) & (shape_B1HW > 0)
        return torch.where(changed_B1HW, blended_BCHW, clean_BCHW), changed_B1HW.to(clean_BCHW)

    def _families(self, draw: Draws) -> tuple[Tensor, Tensor, Tensor]:
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
                textures_NCHW = textures_NCHW.to(device)
                if textures_NCHW.shape[-2:] != size:
                    textures_NCHW = _in_unit(textures_NCHW, clean_BCHW.dtype)
                    textures_NCHW = F.interpolate(textures_NCHW, size, mode="bilinear", antialias=True).clamp(0, 1)
            noise_N1HW = self._noise_N1HW
            if noise_N1HW is None or noise_N1HW.shape[-2:] != size:
                noise_N1HW = noise_bank(*size)
            self._banks[size, device] = noise_N1HW.to(device), textures_NCHW
        return self._banks[size, device]


class Draws:
    """Random numbers for a part of a batch, one per image and call, of shape B×1×1×1.

    They are drawn for the whole batch, so that a part gets the same ones.
    """

    def __init__(self, batch_BCHW: Tensor, generator: torch.Generator, part: slice) -> None:
        self.all, _, self.height, self.width = batch_BCHW.shape
        self.part, self.count = part, len(range(self.all)[part])
        self.device, self.generator = batch_BCHW.device, generator
        self.cells = [min(GRID, side) for side in (self.height, self.width)]

    def unit(self, *shape: int) -> Tensor:
        """Shape B×..., from 0 to 1."""
        return torch.rand(self.all, *shape, generator=self.generator, device=self.device)[self.part]

    def __call__(self, low: float = 0, high: float = 1, channels: int = 1) -> Tensor:
        return low + (high - low) * self.unit(channels, 1, 1)

    def log(self, low: float, high: float) -> Tensor:
        """Uniform in the logarithm: small values as often as large ones."""
        return self(math.log(low), math.log(high)).exp()

    def index(self, length: int) -> Tensor:
        """Shape B, below `length`."""
        return torch.randint(length, (self.all,), generator=self.generator, device=self.device)[self.part]

    def grid(self) -> tuple[Tensor, Tensor]:
        """Rows 1×1×H×1 and columns 1×1×1×W."""
        rows, columns = torch.arange(self.height, device=self.device), torch.arange(self.width, device=self.device)
        return rows.view(1, 1, -1, 1), columns.view(1, 1, 1, -1)

    def place(
        self, product_B1hw: Tensor | None, inside_B1HW: Tensor | None = None
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """A pixel per image, as row and column, and where around it a defect may reach, B×1×H×W; B×1×1×1: anywhere.

        Most of the pixels lie in the product's cells, where those are known, and then so do their defects; all of them
        lie in or at the cells of what is inside.
        """
        if product_B1hw is None:
            cells_B1hw = torch.ones(self.count, 1, 1, 1, device=self.device)
        else:
            cells_B1hw = torch.maximum(product_B1hw, (self() >= PRODUCT_SHARE).to(product_B1hw))
        if inside_B1HW is not None:
            region_B1hw = (F.adaptive_avg_pool2d(inside_B1HW, self.cells) > 0).to(cells_B1hw)
            both_B1hw = cells_B1hw * region_B1hw
            cells_B1hw = torch.where(both_B1hw.amax(dim=(2, 3), keepdim=True) > 0, both_B1hw, region_B1hw)
        height, width = cells_B1hw.shape[-2:]
        cell = (self.unit(height * width) * cells_B1hw.flatten(1)).argmax(dim=1).view(-1, 1, 1, 1)
        row = ((cell // width + self()) * (self.height / height)).floor()
        column = ((cell % width + self()) * (self.width / width)).floor()
        if product_B1hw is None and inside_B1HW is None:
            return (row, column), cells_B1hw
        near_B1hw = F.max_pool2d(cells_B1hw, 3, stride=1, padding=1)
        near_B1HW = F.interpolate(near_B1hw, (self.height, self.width), mode="bilinear", align_corners=False) > 0.5
        return (row, column), near_B1HW.to(cells_B1hw)

    def shift(self, start: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Rows B×H and columns B×W of images rolled until their corners are at `start`, or a random way.

        They are mirrored by chance along both axes.
        """
        starts = start or ((self() * self.height).floor(), (self() * self.width).floor())
        return tuple(
            (((position - first) * (1 - 2 * (self() < 0.5).long())).long() % length).view(self.count, length)
            for position, first, length in zip(self.grid(), starts, (self.height, self.width), strict=True)
        )

    def turn(self) -> Tensor:
        """Where `grid_sample` finds images shifted, scaled and turned by any angle, B×H×W×2."""
        angle, scale = self(0, 2 * math.pi), self.log(*TEXTURE_SCALE)
        sine, cosine = angle.sin() * scale, angle.cos() * scale
        ratio = self.height / self.width
        affine_B6 = torch.cat(
            [cosine, sine * ratio, self(-1), -sine / ratio, cosine, self(-1)],
            dim=1,
        )
        return F.affine_grid(affine_B6.view(-1, 2, 3), [self.count, 1, self.height, self.width], align_corners=False)


def picked(planes_NHW: Tensor, plane_BC: Tensor, rows_BH: Tensor, columns_BW: Tensor) -> Tensor:
    """Return rows and columns of planes, B×C×H×W, in the order that they are named in."""
    _, height, width = planes_NHW.shape
    line_BCH = plane_BC.unsqueeze(2) * height + rows_BH.unsqueeze(1)
    picked_BCHW = planes_NHW.reshape(-1, width).index_select(0, line_BCH.flatten()).view(*line_BCH.shape, width)
    return picked_BCHW.gather(3, columns_BW[:, None, None].expand_as(picked_BCHW))


def product_cells(image_BCHW: Tensor, tolerance: float, cells: list[int]) -> Tensor:
    """Return 1 for the cells of a grid that show a product, B×1×h×w: those unlike the median of their image's border.

    The border is each image's own, for training also changes the light of whole images.
    """
    edges = image_BCHW[..., 0, :], image_BCHW[..., -1, :], image_BCHW[..., :, 0], image_BCHW[..., :, -1]
    border_BC11 = torch.cat(edges, dim=2).median(dim=2).values[..., None, None]
    away_B1HW = (image_BCHW - border_BC11).abs().amax(dim=1, keepdim=True) > tolerance
    return (F.adaptive_avg_pool2d(away_B1HW.to(image_BCHW), cells) > 0.5).to(image_BCHW)


def _grown(mask_B1HW: Tensor) -> Tensor:
    """Return where a mask is within 2 pixels: what pooling 5×5 maxima gives, which on a CPU takes ten times as long."""
    mask_B1HW = F.pad(mask_B1HW, (2, 2, 2, 2))
    for axis in (2, 3):
        side = mask_B1HW.shape[axis]
        two_B1HW = mask_B1HW.narrow(axis, 0, side - 1) | mask_B1HW.narrow(axis, 1, side - 1)
        four_B1HW = two_B1HW.narrow(axis, 0, side - 4) | two_B1HW.narrow(axis, 2, side - 4)
        mask_B1HW = four_B1HW | mask_B1HW.narrow(axis, 4, side - 4)
    return mask_B1HW


def _in_unit(image_BCHW: Tensor, dtype: torch.dtype) -> Tensor:
    """Return images in [0, 1]; photographs stay bytes until they are drawn, a quarter of the memory."""
    return image_BCHW.to(dtype).div_(255) if image_BCHW.dtype == torch.uint8 else image_BCHW.to(dtype)


def noise_bank(height: int, width: int) -> Tensor:
    """Return the Perlin fields that masks are cut from, N×1×height×width, always the same."""
    return _peaks_first(perlin_bank(NOISE_FIELDS, height, width))


def _peaks_first(noise_N1HW: Tensor) -> Tensor:
    """Roll each field until its highest value is in the corner, so that rolling on puts a mask where it shall be."""
    peaks = [divmod(int(field.argmax()), field.shape[-1]) for field in noise_N1HW]
    fields = zip(noise_N1HW, peaks, strict=True)
    return torch.stack([field.roll((-row, -column), dims=(-2, -1)) for field, (row, column) in fields])


def _blobs(draw: Draws, noise_B1HW: Tensor, centre: tuple[Tensor, Tensor]) -> Tensor:
    """One spot or many: the noise's peaks, lowered with the distance from the centre, where the highest of them is."""
    rows, columns = draw.grid()
    area, reach = draw.log(*PERLIN_AREA), draw.log(*PERLIN_REACH) * min(draw.height, draw.width)
    lowered_B1HW = noise_B1HW - area * (((rows - centre[0]).square() + (columns - centre[1]).square()) / reach.square())
    return ((lowered_B1HW - (1 - area)) / (area * draw.log(*PERLIN_RIM))).clamp(0, 1)


def _stain(draw: Draws, noise_B1HW: Tensor, centre: tuple[Tensor, Tensor]) -> Tensor:
    rows, columns = draw.grid()
    # Centred on a pixel and at least a pixel wide, so that no stain falls between pixels.
    down, right = rows - centre[0], columns - centre[1]
    angle = draw(0, math.pi)
    long, short = ((draw(*STAIN_AXES) * min(draw.height, draw.width)).clamp(min=1) for _ in range(2))
    along, across = down * angle.cos() + right * angle.sin(), right * angle.cos() - down * angle.sin()
    radius_B1HW = ((along / long).square() + (across / short).square()).sqrt()
    contour_B1HW = 1 + draw(0.2, 1) * (noise_B1HW - 0.5)
    return ((contour_B1HW - radius_B1HW) / draw.log(0.05, 0.5)).clamp(0, 1)


def _patch(draw: Draws, centre: tuple[Tensor, Tensor]) -> Tensor:
    rows, columns = draw.grid()
    area, aspect = draw.log(*PATCH_AREA) * draw.height * draw.width, draw.log(*PATCH_ASPECT)
    height = (area * aspect).sqrt().clamp(1, draw.height).round()
    width = (area / aspect).sqrt().clamp(1, draw.width).round()
    top = (centre[0] - (height / 2).floor()).clamp(min=0).minimum(draw.height - height)
    left = (centre[1] - (width / 2).floor()).clamp(min=0).minimum(draw.width - width)
    return ((rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)).float()


def _filling(draw: Draws, batch_BCHW: Tensor, textures_NCHW: Tensor | None, *, plain: Tensor, copied: Tensor) -> Tensor:
    """What shows in the shapes: a colour if `plain`, a place of the batch if `copied`, else either or a texture."""
    choice = draw()
    image_B1, shift = draw.index(len(batch_BCHW))[:, None], draw.shift()
    if textures_NCHW is not None:
        photograph_B1, turn_BHW2 = draw.index(len(textures_NCHW))[:, None], draw.turn()
    # Fillings vary in their light and their channels' order, so that few photographs go a long way.
    contrast = draw(0.4, 1.6) * torch.where(draw() < INVERTED_SHARE, -1.0, 1.0)
    channel_BC = (torch.arange(3, device=draw.device) + draw.index(3)[:, None] * ~copied.flatten(1)) % 3
    level = 0.5 - 0.5 * contrast + draw(-0.25, 0.25)
    colour_BC11 = torch.lerp(draw(), draw(channels=3), draw())  # from grey to vivid
    # A copied patch keeps its own, and a plain colour has nothing else.
    flat = plain | ((choice > 1 - COLOUR_SHARE) & ~copied)
    contrast = torch.where(copied, 1.0, torch.where(flat, 0.0, contrast))
    level_BC11 = torch.where(copied, 0.0, torch.where(flat, colour_BC11, level))

    filling_BCHW = picked(batch_BCHW.flatten(0, 1), 3 * image_B1 + channel_BC, *shift)
    if textures_NCHW is not None:
        texture_BCHW = _in_unit(textures_NCHW[photograph_B1, channel_BC], batch_BCHW.dtype)
        photograph_BCHW = F.grid_sample(texture_BCHW, turn_BHW2, padding_mode="reflection", align_corners=False)
        filling_BCHW = torch.where((choice < TEXTURE_SHARE) & ~copied, photograph_BCHW, filling_BCHW)
    filling_BCHW = torch.addcmul(level_BC11, filling_BCHW, contrast).clamp_(0, 1)
    # In grey photographs a coloured defect would be given away by its colour alone.
    clean_BCHW = batch_BCHW[draw.part]
    grey = (clean_BCHW.amax(dim=1) - clean_BCHW.amin(dim=1)).amax(dim=(1, 2)).view(-1, 1, 1, 1) < SMALLEST_CHANGE
    return torch.where(grey, filling_BCHW.mean(dim=1, keepdim=True), filling_BCHW)
