"""The one face of every architecture: named losses for training, named anomaly maps for scoring.

Tensors are named by shape: B images, C channels, H×W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from msad.models.errors import ModelError, did_you_mean
from msad.models.precision import full_float32
from msad.models.roi import Roi

Encoded = Tensor | tuple[Tensor, ...]
"""What a model's `encode` makes of a batch: the images themselves, or the features of a frozen backbone."""

Arrays = Mapping[str, np.ndarray]
Cached = Callable[[str, Callable[[], dict[str, np.ndarray]]], Arrays]
"""Returns the arrays that a function makes, and may keep them under a name for later jobs on the same images."""


def make_here(_name: str, make: Callable[[], dict[str, np.ndarray]]) -> Arrays:
    """Compute arrays without keeping them for others."""
    return make()


AfterEpoch = Callable[[int, Mapping[str, float]], bool]
"""Hears of a finished epoch (counted from 1) and its figures, e.g. `train_loss`; returns whether to go on."""


class AnomalyModel(nn.Module, ABC):
    """A network that learns from good images and marks what differs from them.

    Attributes
    ----------
    loss_terms
        Every name that `losses` can compute; none for a network that takes no steps: `adapt` is all its training.
    costly_terms
        Those of them that `losses` computes only when asked for by name.
    default_loss_weights
        Weights that train a good detector without a search.
    training_defaults
        Fields of a job's configuration that suit this architecture better than the job's own defaults.
    search_space
        For an architecture from outside of this repository: slash paths into the job (`learning_rate`, `model/width`,
        `loss_weights/l1`) and their Optuna distributions, or a function without arguments that returns them. Left
        empty there is nothing to search. This package's own are in `search_spaces/`, because `models/` knows no Optuna.
    map_names
        The keys of `anomaly_maps`.
    stepped_maps
        Those of a part that takes steps, where another part does not, see `without`.
    fixed_scoring
        The one `msad.models.scorer.Scoring` by which the maps are read, its smoothing in pixels of an image of 256;
        left empty it is chosen on the validation images.
    size_multiple
        Both sides of an image must be divisible by this many pixels.
    has_frozen_encoder
        Whether `encode` does work that never changes, and so is worth doing only once per image.
    trained_stages
        How many parts of what such an encoder gives `losses` looks at, the first ones; None: all.
    pretrained
        Weights inside the model that others have trained, by name, with their terms; empty where there are none.
    roi
        The region of interest of whole images, where there is one. It is set from outside and no part of the state;
        maps are cut to it afterwards, whatever a model makes of it.
    """

    loss_terms: ClassVar[tuple[str, ...]]
    costly_terms: ClassVar[tuple[str, ...]] = ()
    default_loss_weights: ClassVar[dict[str, float]]
    training_defaults: ClassVar[dict[str, Any]] = {}
    search_space: ClassVar[Mapping[str, Any] | Callable[[], Mapping[str, Any]]] = {}
    map_names: ClassVar[tuple[str, ...]]
    stepped_maps: ClassVar[tuple[str, ...]] = ()
    fixed_scoring: Mapping[str, Any] = MappingProxyType({})
    has_frozen_encoder: ClassVar[bool] = False
    trained_stages: int | None = None
    size_multiple: int = 1
    pretrained: Mapping[str, str] = MappingProxyType({})
    roi: Roi | None = None

    def meet(self, good_NHWC: np.ndarray, cached: Cached = make_here) -> None:
        """See the good training images, uint8 RGB N×H×W×3, before any is encoded; most networks need not.

        What takes long may be kept by `cached`, under a name that says all that it depends on but for the images.
        """

    def encode(self, image_BCHW: Tensor) -> Encoded:
        """Do the part of the work that never changes: nothing, for a network without a frozen encoder.

        Raises
        ------
        ModelError
            The images' size does not fit.
        """
        self.check_size(image_BCHW)
        return image_BCHW

    def adapt(self, clean: Iterable[Encoded]) -> None:
        """Look at all good training images, encoded, before the first step; most networks need not."""

    def adapt_inside(self, clean: Iterable[Encoded], inside: Iterable[Tensor] | None) -> None:
        """As `adapt`, where nothing outside of a region of interest should be learned; left as it is, all is.

        Parameters
        ----------
        clean
            As in `adapt`.
        inside
            In step with it: which share of each place of the finest features is inside, B×1×H×W. None: all is.
        """
        self.adapt(clean)

    def without(self, left_out_N: np.ndarray, count: int) -> AnomalyModel | None:
        """Return what this model would be, had `adapt` not seen some of its `count` images, in any view; None: unknown.

        Views of the images came one round after the other, all images in each. Parts that took steps stay as they are:
        `stepped_maps` are theirs.
        """
        return None

    def losses(
        self, clean: Encoded, corrupted: Encoded, mask_B1HW: Tensor, terms: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """Return the unweighted loss terms of a step from corrupted to clean.

        Parameters
        ----------
        clean, corrupted
            Float images in [0, 1], B×3×H×W, RGB, and the same with synthetic corruption; or both as `encode` returned
            them.
        mask_B1HW
            1 where a pixel was changed, else 0; with encoded images it may be smaller and hold shares of the area.
        terms
            Names to compute; None computes all but `costly_terms`.

        Returns
        -------
        dict
            One scalar float32 tensor per term, 0 when the model is perfect, in the order of `loss_terms`.

        Raises
        ------
        ModelError
            A term is unknown, none is asked for, or the images' size does not fit.
        """
        if not self.loss_terms:
            raise ModelError(f"{type(self).__name__} has no loss term: it is not trained by steps")
        wanted = set(terms) if terms is not None else set(self.loss_terms) - set(self.costly_terms)
        for term in sorted(wanted):
            if term not in self.loss_terms:
                raise ModelError(f"unknown loss term {term!r}{did_you_mean(term, self.loss_terms)}")
        if not wanted:
            raise ModelError(f"no loss term to train on: give one of {', '.join(self.loss_terms)} a weight above 0")
        clean, corrupted = self._encoded(clean), self._encoded(corrupted)
        return self._losses(clean, corrupted, mask_B1HW, [t for t in self.loss_terms if t in wanted])

    @torch.no_grad()
    @full_float32()
    def anomaly_maps(self, image: Encoded) -> dict[str, Tensor]:
        """Return the candidate residuals of float RGB images in [0, 1], or of encoded ones; call `eval()` first.

        Returns
        -------
        dict
            `map_names` to float32 B×1×H×W, at the images' size, computed as `full_float32` does; higher is more
            anomalous.

        Raises
        ------
        ModelError
            The images' size does not fit.
        """
        return {name: map_B1HW.float() for name, map_B1HW in self._maps(self._encoded(image)).items()}

    def _encoded(self, images: Encoded) -> Encoded:
        return self.encode(images) if isinstance(images, Tensor) else images

    def check_size(self, image_BCHW: Tensor) -> None:
        """Raise a ModelError unless the images are B×3×H×W with sides that `size_multiple` divides."""
        if image_BCHW.ndim != 4 or image_BCHW.shape[1] != 3:
            raise ModelError(f"images of shape {tuple(image_BCHW.shape)}: B×3×H×W (RGB) is needed")
        height, width = image_BCHW.shape[-2:]
        if height % self.size_multiple or width % self.size_multiple:
            near = "×".join(
                str(self.size_multiple * max(1, round(side / self.size_multiple))) for side in (height, width)
            )
            raise ModelError(
                f"images of {height}×{width} pixels do not fit {type(self).__name__}: both sides must be divisible by "
                f"{self.size_multiple}; the nearest size is {near}"
            )

    @abstractmethod
    def _losses(self, clean: Encoded, corrupted: Encoded, mask_B1HW: Tensor, terms: list[str]) -> dict[str, Tensor]: ...

    @abstractmethod
    def _maps(self, image: Encoded) -> dict[str, Tensor]: ...


class SelfTraining(AnomalyModel):
    """A network that brings its own training: a memory bank, or a recipe that must stay as it is.

    It has no losses; a search can turn its `model/...` parameters alone.
    """

    loss_terms: ClassVar[tuple[str, ...]] = ()
    default_loss_weights: ClassVar[dict[str, float]] = {}
    training_defaults: ClassVar[dict[str, Any]] = {"epochs": 1, "evaluate_every": 1}

    @abstractmethod
    def fit(self, images_NHWC: np.ndarray, *, epochs: int, batch_size: int, seed: int, after_epoch: AfterEpoch) -> None:
        """Train on good images, on the device the model is on.

        Parameters
        ----------
        images_NHWC
            uint8 RGB N×H×W×3, all good images of the training split.
        epochs, batch_size, seed
            Of the job. A recipe that knows better may do otherwise.
        after_epoch
            To be called after each epoch but the last: it validates now and then, keeps the best weights, and says when
            to stop. After the last epoch the model is validated anyway.
        """

    def _losses(self, clean: Encoded, corrupted: Encoded, mask_B1HW: Tensor, terms: list[str]) -> dict[str, Tensor]:
        raise ModelError(f"{type(self).__name__} trains itself: it has no losses")
