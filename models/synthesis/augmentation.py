"""Random changes of good images that leave them good: what their own symmetries allow, and no more.

A kind says how the product lies on its photographs:

- aligned: always alike. Small shifts and changes of light.
- rotated: anyhow on an empty background. Also turned by any angle.
- texture: without a place. Also turned and cropped to a part, scaled up by the crop alone.

Aligned images found to be symmetric are mirrored and turned by quarters or halves too. Half of the images keep their
own pixels, for interpolation blurs, and what is tested later is not blurred. Everything is computed for all images of a
batch on their device; no step waits for it. And what a camera does is changed too: of the images a sixth get noise, a
sixth are blurred a little, and a sixth have been through JPEG.

Tensors are named by shape: B images of a batch, C channels, H×W pixels, N good images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from msad.models.errors import ModelError, did_you_mean
from msad.models.synthesis.appearance import Appearance, appearance_of
from msad.models.synthesis.foreground import Background
from msad.models.synthesis.jpeg import jpeg
from msad.models.synthesis.symmetry import Symmetries

KINDS = ("auto", "none", "aligned", "rotated", "texture")
UNBLURRED_SHARE = 0.5
CAMERA_SHARE = 1 / 6  # of the images each is blurred, or gets noise, or is compressed
SMALLEST_CROP = 0.85  # of the side, before a turn makes it smaller

_RANGES = (("shift", 0, 0.25), ("light", 0, 0.25), ("noise", 0, 16), ("blur", 0, 1), ("jpeg_quality", 1, 100))


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """How good images are changed before they are corrupted.

    Parameters
    ----------
    kind
        `auto` finds out by the good images; `none` changes nothing; `aligned`, `rotated` and `texture` are described
        above, and take from the symmetries of the images what fits.
    shift
        Largest shift of aligned and rotated products, as a share of the side, in [0, 0.25].
    light
        Largest relative change of brightness, in [0, 0.25].
    noise
        Largest standard deviation of a camera's noise that is added, in grey levels of 255, in [0, 16].
    blur
        Largest standard deviation of the Gaussian that an image is blurred with, in pixels, in [0, 1].
    jpeg_quality
        Lowest quality of JPEG, in [1, 100]; 100: none is compressed.

    Raises
    ------
    ModelError
        All values that are unknown or out of range, in one message.
    """

    kind: str = "auto"
    shift: float = 0.02
    light: float = 0.04
    noise: float = 1.5
    blur: float = 0.5
    jpeg_quality: float = 85

    def __post_init__(self) -> None:
        problems = [f"kind is {self.kind!r}{did_you_mean(str(self.kind), KINDS)}"] if self.kind not in KINDS else []
        problems += [
            f"{name} is {value!r}; it must be between {least} and {most}"
            for name, least, most in _RANGES
            if not isinstance(value := getattr(self, name), Real) or not least <= value <= most
        ]
        if problems:
            raise ModelError(f"augmentation: {'; '.join(problems)}")


def recommend_kind(background: Background | None, symmetries: Symmetries) -> str:
    """Say how the product lies: `rotated` on an empty background at any angle, `texture` at any place, or `aligned`."""
    if background is not None:
        return "rotated" if symmetries.rotation else "aligned"
    return "texture" if symmetries.shift else "aligned"


class Augmenter:
    """Makes changed copies of good images; the same generator state gives the same copies.

    Parameters
    ----------
    config
        See `AugmentationConfig`.
    good
        uint8 images N×H×W×3 of the training split, or their appearance; `auto` and the symmetries are decided by them.

    Attributes
    ----------
    kind
        What the configuration's kind came to: `none`, `aligned`, `rotated` or `texture`.
    symmetries
        See `msad.models.synthesis.symmetry.Symmetries`.
    """

    def __init__(self, config: AugmentationConfig, good: np.ndarray | Appearance) -> None:
        self.config, seen = config, appearance_of(good)
        self.symmetries = Symmetries() if config.kind == "none" else seen.symmetries
        self.kind = recommend_kind(seen.background, self.symmetries) if config.kind == "auto" else config.kind

    @torch.no_grad()
    def __call__(self, clean_BCHW: Tensor, generator: torch.Generator, tile: int = 0) -> Tensor:
        """Change images.

        Parameters
        ----------
        clean_BCHW
            Float RGB images in [0, 1].
        generator
            Source of all randomness, on the images' device.
        tile
            Side in pixels of a random part of each changed image, at its full resolution, which is all that is computed
            and returned; 0: the whole image.
        """
        height, width = clean_BCHW.shape[-2:]

        def draw(low: float = 0, high: float = 1) -> Tensor:
            return low + (high - low) * torch.rand(len(clean_BCHW), generator=generator, device=clean_BCHW.device)

        window = None
        if tile:
            top_B, left_B = ((draw() * (side - tile + 1)).floor().long() for side in (height, width))
            window = top_B, left_B
        shown_BCHW = clean_BCHW if window is None else _cut(clean_BCHW, window, tile)
        if self.kind == "none":
            return shown_BCHW

        blurred_B = (draw() >= UNBLURRED_SHARE).float()
        angle_B = self._quarters(draw(), square=height == width) * (math.pi / 2)
        # A turned window would have to be far smaller than a rectangle, and enlarged to fill it.
        turns_texture = self.kind == "texture" and self.symmetries.rotation and height == width
        if self.kind == "rotated" or turns_texture:
            angle_B = angle_B + blurred_B * draw(-math.pi, math.pi)
        flip_x_B, flip_y_B = self._flip(draw(), "mirror_lr"), self._flip(draw(), "mirror_ud")
        right_B, down_B, scale_B = draw(-1, 1), draw(-1, 1), torch.ones_like(angle_B)
        if self.kind == "texture":
            # What a turned square window can hold of the image without leaving it, and a free place for it there.
            reach_B = angle_B.cos().abs() + angle_B.sin().abs()
            scale_B = torch.lerp(scale_B, draw(SMALLEST_CROP, 1), blurred_B) / reach_B
            right_B, down_B = (move_B * (1 - scale_B * reach_B).clamp(min=0) for move_B in (right_B, down_B))
        else:
            right_B, down_B = (
                (move_B * self.config.shift * length).round() * (2 / length)
                for move_B, length in ((right_B, width), (down_B, height))
            )
        sine_B, cosine_B, ratio = scale_B * angle_B.sin(), scale_B * angle_B.cos(), height / width
        affine_B6 = [cosine_B * flip_x_B, -sine_B * flip_y_B * ratio, right_B]
        affine_B6 += [sine_B * flip_x_B / ratio, cosine_B * flip_y_B, down_B]
        affine_B23 = torch.stack(affine_B6, dim=1).view(-1, 2, 3)
        if window is not None:
            affine_B23 = affine_B23 @ _of_window(window, tile, height, width)
        grid_BHW2 = F.affine_grid(affine_B23, list(shown_BCHW.shape), False)
        moved_BCHW = F.grid_sample(clean_BCHW, grid_BHW2, padding_mode="border", align_corners=False)
        if self.kind == "rotated":  # the corners stay as they were: background, with its own grain
            outside_B1HW = (grid_BHW2.abs().amax(dim=3) > 1).unsqueeze(1)
            moved_BCHW = torch.where(outside_B1HW, shown_BCHW, moved_BCHW)
        gain_B = 1 + draw(-self.config.light, self.config.light)
        offset_B = draw(-self.config.light, self.config.light) / 4
        changed_B = draw()
        if self.config.blur:
            sigma_B = draw(0, self.config.blur) * (changed_B > 1 - CAMERA_SHARE)
            moved_BCHW = _blurred(moved_BCHW, sigma_B)
        seen_BCHW = torch.addcmul(offset_B.view(-1, 1, 1, 1), moved_BCHW, gain_B.view(-1, 1, 1, 1))
        if self.config.noise:
            noise_B = draw(0, self.config.noise / 255) * (changed_B.sub(0.5).abs() < CAMERA_SHARE / 2)
            size = (len(seen_BCHW), 1, *seen_BCHW.shape[2:])
            grain_B1HW = torch.randn(size, generator=generator, device=seen_BCHW.device)
            seen_BCHW.addcmul_(grain_B1HW, noise_B.view(-1, 1, 1, 1))
        seen_BCHW.clamp_(0, 1)
        if self.config.jpeg_quality < 100:
            _compress_some(seen_BCHW[:, :3], changed_B, draw(), draw(self.config.jpeg_quality, 100))
        return seen_BCHW

    def _quarters(self, unit_B: Tensor, *, square: bool) -> Tensor:
        """Turns by 90 degrees, as whole numbers."""
        if self.symmetries.turn_90 and square:
            return (unit_B * 4).floor()
        return (unit_B * 2).floor() * 2 if self.symmetries.turn_180 else torch.zeros_like(unit_B)

    def _flip(self, unit_B: Tensor, name: str) -> Tensor:
        return torch.where(unit_B < 0.5, -1.0, 1.0) if getattr(self.symmetries, name) else torch.ones_like(unit_B)


def _blurred(image_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
    """Blur each image by a Gaussian of its own deviation, at most a pixel: nearest neighbours say nearly all."""
    beside_B = torch.exp(-0.5 / sigma_B.clamp(min=1e-3).square())
    beside_B111 = (beside_B / (1 + 2 * beside_B)).view(-1, 1, 1, 1)
    for dim, border in ((2, (0, 0, 1, 1)), (3, (1, 1, 0, 0))):
        padded, length = F.pad(image_BCHW, border, mode="replicate"), image_BCHW.shape[dim]
        around_BCHW = padded.narrow(dim, 0, length) + padded.narrow(dim, 2, length)
        image_BCHW = torch.addcmul(image_BCHW * (1 - 2 * beside_B111), around_BCHW, beside_B111)
    return image_BCHW


def _compress_some(image_B3HW: Tensor, order_B: Tensor, chance_B: Tensor, quality_B: Tensor) -> None:
    """Compress `CAMERA_SHARE` of the images in place, those of the lowest draws; what is left of an image by chance."""
    share = CAMERA_SHARE * len(image_B3HW)
    chosen = order_B.argsort()[: math.ceil(share)]
    compressed = (chance_B[chosen] < share / math.ceil(share)).view(-1, 1, 1, 1)
    before_C3HW = image_B3HW[chosen]
    image_B3HW[chosen] = torch.where(compressed, jpeg(before_C3HW, quality_B[chosen]), before_C3HW)


def _cut(image_BCHW: Tensor, window: tuple[Tensor, Tensor], tile: int) -> Tensor:
    """Cut a square of each image, B×C×tile×tile, without waiting for the device."""
    pixel = torch.arange(tile, device=image_BCHW.device)
    batch = torch.arange(len(image_BCHW), device=image_BCHW.device).view(-1, 1, 1)
    rows, columns = (start_B.view(-1, 1) + pixel for start_B in window)
    return image_BCHW[batch, :, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)


def _of_window(window: tuple[Tensor, Tensor], tile: int, height: int, width: int) -> Tensor:
    """Return B×3×3 from places of a window to places of its image, both from -1 to 1."""
    top_B, left_B = window
    matrix_B33 = torch.zeros(len(top_B), 3, 3, device=top_B.device)
    for axis, (start_B, side) in enumerate(((left_B, width), (top_B, height))):
        matrix_B33[:, axis, axis] = tile / side
        matrix_B33[:, axis, 2] = (2 * start_B + tile) / side - 1
    matrix_B33[:, 2, 2] = 1
    return matrix_B33
