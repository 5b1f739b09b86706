"""What a job may see, and what is made of it once for all jobs on the same images.

Tensors are named by shape: H×W pixels, N images of a set, C channels.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from msad.models.base import Arrays, Cached, make_here
from msad.models.defects import KnownDefects
from msad.models.roi import Roi
from msad.models.synthesis.appearance import Appearance
from msad.models.synthesis.corruptions import noise_bank
from msad.models.synthesis.nuisances import changed_once
from msad.models.synthesis.synthetic_defects import SyntheticSet
from msad.training.array_loader import shared
from msad.training.identity import Identity


@dataclass(frozen=True)
class TrainingData:
    """What a job may see: good images of the training split, and known defects.

    `train_NHWC`, `validation_NHWC`: uint8 RGB. `synthetic`: the validation images with synthetic defects. `known`: real
    defects that help to choose, or None; `taught`: others that are trained on, each with its mask. `textures_NHWC`:
    uint8 photographs that the corruption may paste, or None. `roi_HW`: the region of interest, bool, or None where all
    of an image counts. `statistics`: plain ones of the validation images' files, by name N each, see
    `msad.data_io.image_statistics`. `cached(name, make)` returns the arrays that `make` computes, and may keep them
    for later jobs of the same identity; `name` says all else they depend on. `identity` is what the images are.
    """

    train_NHWC: np.ndarray
    validation_NHWC: np.ndarray
    synthetic: SyntheticSet
    known: KnownDefects | None = None
    taught: KnownDefects | None = None
    textures_NHWC: np.ndarray | None = None
    roi_HW: np.ndarray | None = None
    statistics: Arrays = field(default_factory=dict)
    cached: Cached = make_here
    identity: Identity | None = None

    @functools.cached_property
    def changed_NHWC(self) -> np.ndarray:
        """The validation images, uint8, each changed in one way that leaves it good."""

        def make() -> dict[str, np.ndarray]:
            return {"changed": changed_once(self.train_NHWC, self.validation_NHWC)}

        return self.cached("changed", make)["changed"]

    @functools.cached_property
    def appearance(self) -> Appearance:
        """What the training images say about the product, judged once for all trials on them."""
        found = self.cached("appearance", Appearance(self.train_NHWC).to_arrays)
        return Appearance.from_arrays(self.train_NHWC, found)

    def noise(self, height: int, width: int) -> Tensor:
        """Return the corruption's noise at a size in pixels, made once for all trials on the images."""
        return shared(self.cached("noise", lambda: {"noise": noise_bank(height, width).numpy()})["noise"])

    def roi(self, device: torch.device) -> Roi | None:
        """Return the region of interest on a device."""
        return None if self.roi_HW is None else Roi(torch.from_numpy(np.array(self.roi_HW))[None].to(device))
