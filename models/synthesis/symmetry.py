"""Which transforms of good images look like good images again, found from the good images alone.

A transform T is allowed when T(image) is as near to the other good images as the image itself is. A screw that lies
anywhere may be turned, and must not be mirrored; a printed label may be neither; cloth may be turned by half. Such
checks guard augmentation against teaching that a defect is good (Yoo et al., "Data Augmentation is a Hyperparameter",
TMLR 2023, arXiv 2208.07734: wrong augmentation decides the outcome, and may not be chosen by test labels).

Nearness is judged by three cheap descriptors, and the least favourable counts: a small picture (where things are), the
gradients' directions in each of 8×8 cells (which way edges run there, in a small print as much as in an outline), and
over the whole image (the grain of a texture, whose small pictures are all equally far apart). Distances below a small
share of a descriptor's own contrast count as that share: on products that are all but identical the gleam of a lamp
would else forbid to turn a round bottle.

Tensors are named by shape: N good images, H×W pixels, D numbers of a descriptor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

TOLERANCE = 1.4  # how many times farther than good images are from one another
NEGLIGIBLE = 0.16  # a distance, as a share of the descriptor's contrast
FEWEST = 8  # images, to judge at all
MOST = 200
AT_ONCE = 16  # images described together: more do not fit a processor's cache
SIDE = 128  # pixels that the images are reduced to
PICTURE = 24  # pixels of the small picture
CELLS = 8
DIRECTIONS = 16
LONGEST_TURNED = 1.5  # times the shorter side: in longer pictures a product at any angle leaves most of them empty
CROP = 0.75  # share of the side that is compared when the place does not matter
NEIGHBOURS = 3
FAINT = 0.003  # the gradient, in images of [0, 1], below which a cell is empty

Transform = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Symmetries:
    """What keeps a good image good.

    `mirror_lr`, `mirror_ud`: left and right, or up and down, change places. `turn_90`, `turn_180`: quarter turns of
    square images, half turns. `rotation`: any angle, of an oblong image by the square in its middle. `shift`: any
    place, as in an endless texture. `ratios`: by the same names, how much farther the transformed images are from the
    others than the images are, at worst.
    """

    mirror_lr: bool = False
    mirror_ud: bool = False
    turn_90: bool = False
    turn_180: bool = False
    rotation: bool = False
    shift: bool = False
    ratios: dict[str, float] = field(default_factory=dict, compare=False)

    NAMES: ClassVar[tuple[str, ...]] = ("mirror_lr", "mirror_ud", "turn_90", "turn_180", "rotation", "shift")

    @classmethod
    def judged(cls, ratios: dict[str, float]) -> Symmetries:
        """Allow what is within the tolerance; what has no ratio is not allowed."""
        return cls(**{name: ratio <= TOLERANCE for name, ratio in ratios.items()}, ratios=ratios)


def find_symmetries(good_NHWC: np.ndarray) -> Symmetries:
    """Judge every transform on good images; with fewer than 8 none is allowed.

    Parameters
    ----------
    good_NHWC
        uint8, N×H×W×3. At most 200 of them, evenly spread, are looked at.
    """
    images = np.asarray(good_NHWC)
    if len(images) < FEWEST:
        return Symmetries()
    images = images[np.linspace(0, len(images) - 1, min(len(images), MOST)).round().astype(int)]
    height, width = images.shape[1:3]
    images_N3HW = _small(images)
    middle_N3HW = images_N3HW if height == width else _small(_middle(images))
    transforms: dict[str, tuple[Transform, Transform]] = {
        "mirror_lr": (_same, lambda x: x.flip(3)),
        "mirror_ud": (_same, lambda x: x.flip(2)),
        "turn_180": (_same, lambda x: x.flip(2, 3)),
        "shift": (_centre, _corner),
    }
    if height == width:
        transforms["turn_90"] = _same, lambda x: x.rot90(dims=(2, 3))
    if max(height, width) <= LONGEST_TURNED * min(height, width):
        transforms["rotation"] = _disc, _turned
    plain: dict[Transform, list[Tensor]] = {}
    ratios = {}
    for name, (view, transform) in transforms.items():
        seen_N3HW = middle_N3HW if view is _disc else images_N3HW
        if view not in plain:
            plain[view] = _describe(view(seen_N3HW))
        ratios[name] = max(map(_ratio, _describe(transform(seen_N3HW)), plain[view]))
    return Symmetries.judged(ratios)


def _small(images_NHWC: np.ndarray) -> Tensor:
    """Return images in [0, 1], reduced to a small square."""
    images_N3HW = torch.from_numpy(np.ascontiguousarray(images_NHWC)).permute(0, 3, 1, 2).float() / 255
    return F.interpolate(images_N3HW, (SIDE, SIDE), mode="area")


def _middle(images_NHWC: np.ndarray) -> np.ndarray:
    """Cut the largest square out of the middle: only there does a turn keep everything in the picture."""
    side = min(images_NHWC.shape[1:3])
    top, left = ((length - side) // 2 for length in images_NHWC.shape[1:3])
    return images_NHWC[:, top : top + side, left : left + side]


def _ratio(moved_ND: Tensor, good_ND: Tensor) -> float:
    """How far moved images are from the other good ones, over how far good ones are; medians."""
    contrast = (good_ND - good_ND.mean(dim=1, keepdim=True)).norm(dim=1).median()
    smallest = (NEGLIGIBLE * contrast).clamp(min=1e-3)
    apart, moved = (_distance(first_ND, good_ND).median().maximum(smallest) for first_ND in (good_ND, moved_ND))
    return float(moved / apart)


def _distance(first_ND: Tensor, good_ND: Tensor) -> Tensor:
    distance_NN = torch.cdist(first_ND, good_ND).fill_diagonal_(math.inf)
    return distance_NN.topk(NEIGHBOURS, dim=1, largest=False).values.mean(dim=1)


def _describe(images_N3HW: Tensor) -> list[Tensor]:
    parts = [_describe_few(few_N3HW) for few_N3HW in images_N3HW.split(AT_ONCE)]
    return [torch.cat(descriptor) for descriptor in zip(*parts, strict=True)]


def _describe_few(images_N3HW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    small_N3hw = F.adaptive_avg_pool2d(images_N3HW, PICTURE)
    grey_N1HW = F.avg_pool2d(images_N3HW.mean(dim=1, keepdim=True), 3, stride=1)
    across = grey_N1HW[..., 1:-1, 2:] - grey_N1HW[..., 1:-1, :-2]
    down = grey_N1HW[..., 2:, 1:-1] - grey_N1HW[..., :-2, 1:-1]
    size_NHW = (across.square() + down.square()).sqrt()[:, 0]
    place_NHW = (torch.atan2(down, across) * (DIRECTIONS / (2 * math.pi)))[:, 0]
    cells_NKD, whole_ND = _votes(place_NHW, size_NHW), _votes(place_NHW, size_NHW.square()).mean(dim=1).sqrt()
    whole_ND = torch.cat([cells_NKD.mean(dim=1), whole_ND], dim=1)
    # Every cell counts alike: a small print in a plain place as much as a strong outline.
    cells_NKD = cells_NKD / (cells_NKD.norm(dim=2, keepdim=True) + FAINT)
    return small_N3hw.flatten(1), cells_NKD.flatten(1), whole_ND


def _votes(place_NHW: Tensor, weight_NHW: Tensor) -> Tensor:
    """Weight per direction in each of K = 8×8 cells, N×K×D; a pixel votes for its two nearest directions."""
    count, height, width = place_NHW.shape
    row_H, column_W = (torch.arange(length) * CELLS // length for length in (height, width))
    cell_NHW = (torch.arange(count).view(-1, 1, 1) * CELLS + row_H[:, None]) * CELLS + column_W
    lower_NHW = place_NHW.floor()
    share_NHW, votes = place_NHW - lower_NHW, 0
    for step, part_NHW in ((0, 1 - share_NHW), (1, share_NHW)):
        bin_NHW = cell_NHW * DIRECTIONS + (lower_NHW.long() + step) % DIRECTIONS
        bins = count * CELLS * CELLS * DIRECTIONS
        votes = votes + torch.bincount(bin_NHW.flatten(), (part_NHW * weight_NHW).flatten(), bins)
    return votes.view(count, CELLS * CELLS, DIRECTIONS) * (CELLS * CELLS / (height * width))


def _same(images_N3HW: Tensor) -> Tensor:
    return images_N3HW


def _centre(images_N3HW: Tensor) -> Tensor:
    side = round(CROP * SIDE)
    first = (SIDE - side) // 2
    return images_N3HW[..., first : first + side, first : first + side]


def _corner(images_N3HW: Tensor) -> Tensor:
    """One of the four corners of each image, in turn."""
    side, crops = round(CROP * SIDE), []
    for index, image_3HW in enumerate(images_N3HW):
        top, left = (SIDE - side) * (index % 2), (SIDE - side) * (index // 2 % 2)
        crops.append(image_3HW[:, top : top + side, left : left + side])
    return torch.stack(crops)


def _disc(images_N3HW: Tensor) -> Tensor:
    """Only what stays in the picture at any angle; the rest becomes the image's mean."""
    at = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    inside_HW = (1 - (at.square() + at.square()[:, None]).sqrt()).mul(SIDE / 8).clamp(0, 1)
    mean_N311 = (images_N3HW * inside_HW).sum(dim=(2, 3), keepdim=True) / inside_HW.sum()
    return torch.lerp(mean_N311.expand_as(images_N3HW), images_N3HW, inside_HW)


def _turned(images_N3HW: Tensor) -> Tensor:
    """Each by another angle, by golden steps around the circle."""
    angle_N = torch.arange(len(images_N3HW)) * (math.pi * (3 - math.sqrt(5))) + math.pi / 6
    sine, cosine, zero = angle_N.sin(), angle_N.cos(), torch.zeros(len(images_N3HW))
    affine_N23 = torch.stack([cosine, -sine, zero, sine, cosine, zero], dim=1).view(-1, 2, 3)
    grid_NHW2 = F.affine_grid(affine_N23, list(images_N3HW.shape), align_corners=False)
    return _disc(F.grid_sample(images_N3HW, grid_NHW2, padding_mode="border", align_corners=False))
