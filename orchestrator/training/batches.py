"""Where a training step's images come from: good ones on the device, changed there; or their frozen features.

Tensors are named by shape: B images of a batch, C channels, H×W pixels, N images of a set, V views of each.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from msad.models.backbones import source
from msad.models.base import AnomalyModel, Encoded
from msad.models.precision import full_float32
from msad.models.registry import architecture, is_own
from msad.models.roi import Roi
from msad.models.synthesis.augmentation import AugmentationConfig, Augmenter
from msad.models.synthesis.corruptions import CorruptionConfig, Corruptor
from msad.models.synthesis.pasted_defects import DefectPaster
from msad.training.array_loader import ArrayLoader, fits, shared
from msad.training.job_config import JobConfig
from msad.training.parameters import written_out
from msad.training.training_data import TrainingData

VIEWS_IN_ALL = 800
"""Views of all images together whose features are computed ahead: small categories get more views of each image."""

EPOCH_IMAGES = 200
"""An epoch of a smaller category goes round its features or tiles several times, to show about this many."""

ENCODING = ("backbone", "finest_stride", "coarsest_stride", "light", "pose")
"""Parameters of this package's models that decide what `encode` gives."""

VERSION = 9
"""Part of every identity: raise it when the same images and seed give other features."""

_MOST_VIEWS = 12
_ENCODED = 16  # images through a frozen encoder at once
_LOOKED_AT = 1 << 22  # pixels of whole images looked at, not trained on, at once: 64 images of 256 pixels, one of 2048


class PlainBatches:
    """Images as they are, in batches on the device."""

    def __init__(self, job: JobConfig, data: TrainingData, device: torch.device) -> None:
        self._data, self._device = data, device
        self._batch_size = max(1, min(job.batch_size, _LOOKED_AT // math.prod(job.sides)))

    @functools.cached_property
    def roi(self) -> Roi | None:
        """The region of interest, on the device."""
        return self._data.roi(self._device)

    @property
    def count(self) -> int:
        """How many good training images there are."""
        return len(self._data.train_NHWC)

    @property
    def shown(self) -> int:
        """How many images `clean` yields, in every view."""
        return self.count

    def clean(self) -> Iterator[Encoded]:
        """Yield all good training images."""
        return batches(self._data.train_NHWC, self._device, self._batch_size)

    def validation(self) -> Iterator[Encoded]:
        """Yield the good validation images."""
        return batches(self._data.validation_NHWC, self._device, self._batch_size)

    def changed(self) -> Iterator[Encoded]:
        """Yield the good validation images once more, each changed in a way that leaves it good."""
        return batches(self._data.changed_NHWC, self._device, self._batch_size)

    def synthetic(self, chosen_N: np.ndarray | None = None) -> Iterator[Encoded]:
        """Yield the validation images with synthetic defects, or those at some positions."""
        return batches(self._data.synthetic.images, self._device, self._batch_size, chosen_N)

    def known(self) -> Iterator[Encoded]:
        """Yield the known defects; nothing where there are none."""
        if self._data.known is not None:
            yield from batches(self._data.known.images, self._device, self._batch_size)


class ImageBatches(PlainBatches):
    """Good images, as uint8 on the device or on their way there, augmented and corrupted there.

    `on_device`: whether `draw` reads nothing from the host.
    """

    on_device = True

    def __init__(self, job: JobConfig, data: TrainingData, model: AnomalyModel, device: torch.device) -> None:
        super().__init__(job, data, device)
        self._tile = job.tiles.tile
        self._rows = ArrayLoader(data.train_NHWC, device)
        seen = data.appearance
        self._augment = Augmenter(AugmentationConfig(**job.augmentation), seen)
        if model.loss_terms:
            # The border of a tile may be the product's, and says nothing about a background.
            product = None if self._tile else seen
            self._corrupt = Corruptor(
                CorruptionConfig(**job.corruption), self._textures(), product, data.noise(*job.view)
            )
            self._paste = DefectPaster(data.taught, job.view, product, device) if data.taught else None

    @property
    def shown(self) -> int:
        """How many images, or tiles, `clean` yields."""
        return len(self)

    def __len__(self) -> int:
        """How many images an epoch shows, or how many tiles."""
        return _epoch(self.count) if self._tile else self.count

    def stream(self, indices: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the uint8 images B×H×W×3 of one index after the other, on the device."""
        return self._rows.stream(index_B % self.count for index_B in indices)

    def draw(
        self, images_BHWC: Tensor, generator: torch.Generator, part: slice = slice(None)
    ) -> tuple[Encoded, Encoded, Tensor]:
        """Return images, or a tile of each, augmented, B×3×H×W in [0, 1]; the same with corruption; its mask B×1×H×W.

        All plane after plane: the masks have one channel, distances are computed so, and a network's first convolution
        interleaves channels by itself. Nothing waits for the device, so that a GPU can record it. A part of the batch
        is the same as in all of it: the whole is augmented, whose images may be pasted, the part alone corrupted.
        """
        clean_BCHW, inside_B1HW = self.augmented(images_BHWC, generator)
        return clean_BCHW[part], *self.corrupted(clean_BCHW, inside_B1HW, generator, part)

    def corrupted(
        self,
        clean_BCHW: Tensor,
        inside_B1HW: Tensor | None,
        generator: torch.Generator,
        part: slice = slice(None),
    ) -> tuple[Tensor, Tensor]:
        """Return augmented images, or a part of them, with corruption, and its mask."""
        corrupted_BCHW, mask_B1HW = self._corrupt(clean_BCHW, generator, inside_B1HW, part)
        if self._paste is not None:
            return self._paste(clean_BCHW, corrupted_BCHW, mask_B1HW, generator, inside_B1HW, part)
        return corrupted_BCHW, mask_B1HW

    def augmented(self, images_BHWC: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Return what `draw` does before it corrupts; and 1 where it shows the region of interest, if there is one."""
        # Large images one by one: a whole batch of them in floating point would fill the memory.
        each = images_BHWC.permute(0, 3, 1, 2).split(1 if self._tile else len(images_BHWC))
        planes = (image.to(torch.float32, memory_format=torch.contiguous_format).div_(255) for image in each)
        if self.roi is not None:  # a fourth colour, which is moved as the others are
            inside_1HW = self.roi.inside_1HW.float()
            planes = (torch.cat([image, inside_1HW.expand(len(image), 1, -1, -1)], dim=1) for image in planes)
        made = [self._augment(image, generator, self._tile) for image in planes]
        made_BCHW = torch.cat(made) if len(made) > 1 else made[0]
        if self.roi is None:
            return made_BCHW, None
        return made_BCHW[:, :3].contiguous(), (made_BCHW[:, 3:] > 0.5).float()

    def clean(self) -> Iterator[Encoded]:
        """Yield all good training images as they are; where there are tiles, an epoch's tiles."""
        if self._tile:
            generator = torch.Generator(self._device).manual_seed(0)
            indices = torch.arange(len(self)).split(_ENCODED)
            return (self.augmented(images, generator)[0] for images in self.stream(indices))
        return super().clean()

    def _textures(self) -> Tensor | None:
        if self._data.textures_NHWC is None:
            return None
        return shared(self._data.textures_NHWC).to(self._device).permute(0, 3, 1, 2)


class FeatureBatches:
    """The same, through a frozen encoder once: `V` fixed views of every image, each clean and corrupted.

    A model without loss terms gets no corrupted ones, and where nothing is augmented a single view.

    A step draws one view of each of its images, and by chance its clean or its corrupted features. Nothing is encoded
    while training, so a category costs 2 × V × N passes through the backbone however long a job trains, and later jobs
    on the same images none (`TrainingData.cached`). Of tiles, a view is one of each image; the validation images are
    then encoded whenever they are looked at, tile by tile, for the features of large images fill a disk.
    """

    def __init__(self, job: JobConfig, data: TrainingData, model: AnomalyModel, device: torch.device) -> None:
        self._model, self._device, self._batch_size = model, device, job.batch_size
        # The kept corrupted copies are all corrupted; how often they are drawn is decided at every step.
        self._images = ImageBatches(_all_corrupted(job), data, model, device)
        self._probability = CorruptionConfig(**job.corruption).probability
        self.count, self._tiled = self._images.count, bool(job.tiles.tile)
        self._steps, self._trained = bool(model.loss_terms), model.trained_stages
        self._views = number_of_views(job, self.count)
        kept = data.cached(features_name(job, self.count, device.type), lambda: self._encode_all(job.seed))
        # On a CPU the arrays stay mapped to their file: jobs on the same images share the memory.
        self.on_device = fits(sum(array.nbytes for array in kept.values()), device)
        self._kept: Mapping[str, np.ndarray | Tensor] = (
            {name: shared(array).to(device) for name, array in kept.items()} if self.on_device else kept
        )

    def __len__(self) -> int:
        return _epoch(self.count)

    @property
    def shown(self) -> int:
        """How many images `clean` yields, in every view."""
        return self._views * self.count

    @property
    def roi(self) -> Roi | None:
        """The region of interest, on the device."""
        return self._images.roi

    def stream(self, indices: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield one index after the other, on the device."""
        return (index_B.to(self._device) for index_B in indices)

    def draw(
        self, index_B: Tensor, generator: torch.Generator, part: slice = slice(None)
    ) -> tuple[Encoded, Encoded, Tensor]:
        """Return the clean features of the images at `index_B`, corrupted ones, and the mask at the finest stage.

        A part of the batch is the same as in all of it.
        """
        count = len(index_B)
        view_B = torch.randint(self._views, (count,), generator=generator, device=self._device)
        corrupted_B = torch.rand(count, generator=generator, device=self._device) < self._probability
        index_B, view_B, corrupted_B = index_B[part], view_B[part], corrupted_B[part]
        at_B, corrupted_B111 = view_B * self.count + index_B % self.count, corrupted_B.view(-1, 1, 1, 1)
        kept, changed = (self._rows(name, at_B, self._trained) for name in ("clean", "corrupted"))
        drawn = [torch.where(corrupted_B111, *pair) for pair in zip(changed, kept, strict=True)]
        (mask_B1HW,) = self._take("mask", at_B)
        return tuple(map(_interleaved, kept)), tuple(map(_interleaved, drawn)), mask_B1HW * corrupted_B111

    def clean(self) -> Iterator[Encoded]:
        """Yield the features of all training images, in every view."""
        return self._in_batches("clean")

    def inside(self) -> Iterator[Tensor]:
        """Yield in step with `clean` which share of each place of the finest stage is inside of the region, B×1×H×W."""
        return (inside_B1HW for (inside_B1HW,) in self._in_batches("inside"))

    def validation(self) -> Iterator[Encoded]:
        """Yield the features of the good validation images; where there are tiles, the images."""
        return self._images.validation() if self._tiled else self._in_batches("validation")

    def changed(self) -> Iterator[Encoded]:
        """Yield the features of the changed validation images; where there are tiles, the images."""
        return self._images.changed() if self._tiled else self._in_batches("changed")

    def synthetic(self, chosen_N: np.ndarray | None = None) -> Iterator[Encoded]:
        """Yield the features of the validation images with synthetic defects; where there are tiles, the images."""
        return self._images.synthetic(chosen_N) if self._tiled else self._in_batches("synthetic", chosen_N)

    def known(self) -> Iterator[Encoded]:
        """Yield the features of the known defects; where there are tiles, the images."""
        there = not self._tiled and "known0" in self._kept
        return self._in_batches("known") if there else self._images.known()

    def _in_batches(self, name: str, chosen_N: np.ndarray | None = None) -> Iterator[Encoded]:
        index_N = torch.arange(len(self._kept[f"{name}0"])) if chosen_N is None else torch.from_numpy(chosen_N)
        for index_B in index_N.to(self._device).split(self._batch_size):
            yield self._take(name, index_B)

    def _take(self, name: str, index_B: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(_interleaved, self._rows(name, index_B)))

    def _rows(self, name: str, index_B: Tensor, most: int | None = None) -> list[Tensor]:
        """Return what is kept of a name, stage by stage, so many at most, B×H×W×C on the device."""
        rows = []
        while len(rows) != most and (kept := self._kept.get(f"{name}{len(rows)}")) is not None:
            of_kept = torch.from_numpy(kept[index_B.cpu().numpy()]) if isinstance(kept, np.ndarray) else kept[index_B]
            rows.append(of_kept.to(self._device))
        return rows

    @full_float32()
    def _encode_all(self, seed: int) -> dict[str, np.ndarray]:
        """Encode every view of the training images, clean and corrupted, and the validation images, as `_rows` says.

        What is trained on is kept in half precision. What is judged on is not: a finished model encodes the images that
        it judges itself, and does not round them.
        """
        generator = torch.Generator(self._device).manual_seed(seed)
        parts: dict[str, list[np.ndarray]] = {}

        def add(name: str, features: Encoded, kept_as: torch.dtype = torch.float16) -> None:
            for stage, feature_BCHW in enumerate(features):
                rows_BHWC = feature_BCHW.to(kept_as).permute(0, 2, 3, 1)
                parts.setdefault(f"{name}{stage}", []).append(np.ascontiguousarray(rows_BHWC.cpu().numpy()))

        for _ in range(self._views):
            for images_BHWC in self._images.stream(torch.arange(self.count).split(_ENCODED)):
                clean_BCHW, inside_B1HW = self._images.augmented(images_BHWC, generator)
                clean = self._model.encode(clean_BCHW)
                add("clean", clean)
                if inside_B1HW is not None:
                    add("inside", (F.adaptive_avg_pool2d(inside_B1HW, clean[0].shape[-2:]),))
                if self._steps:
                    corrupted_BCHW, mask_B1HW = self._images.corrupted(clean_BCHW, inside_B1HW, generator)
                    add("corrupted", self._model.encode(corrupted_BCHW))
                    add("mask", (F.adaptive_avg_pool2d(mask_B1HW, clean[0].shape[-2:]),))
        judged = self._images
        looked_at = {"validation": judged.validation, "changed": judged.changed}
        looked_at |= {"synthetic": judged.synthetic, "known": judged.known}
        for name, images in ({} if self._tiled else looked_at).items():
            for image_BCHW in images():
                add(name, self._model.encode(image_BCHW), torch.float32)
        return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _interleaved(rows_BHWC: Tensor) -> Tensor:
    """Return rows as float32 B×C×H×W whose channels lie interleaved, as convolutions want them."""
    return rows_BHWC.permute(0, 3, 1, 2).float()


def number_of_views(job: JobConfig, count: int) -> int:
    """Return how many views of each of so many training images are kept."""
    views = max(1, round(VIEWS_IN_ALL / count))
    if job.tiles.tile:
        return views
    # Views differ by their corruption, or by their augmentation.
    alike = not architecture(job.architecture).loss_terms and job.augmentation.get("kind") == "none"
    return 1 if alike else min(_MOST_VIEWS, views)


def features_name(job: JobConfig, count: int, device_type: str) -> str:
    """Return what a job's features of so many training images are kept under, for their identity.

    It names all that they depend on besides. That is the kind of device too: the random numbers of a CPU and a GPU
    differ, and so do their views.
    """
    model = written_out(job).model
    decisive = [
        job.architecture,
        [dict(job.model), source_digest(job.architecture)]
        if is_own(job.architecture)
        else [{name: model.get(name) for name in ENCODING}, source(model["backbone"])],
        number_of_views(job, count),
        dataclasses.asdict(CorruptionConfig(**_all_corrupted(job).corruption)),
        dataclasses.asdict(AugmentationConfig(**job.augmentation)),
        device_type,
    ]
    return f"features {hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]}"


def _all_corrupted(job: JobConfig) -> JobConfig:
    return job.with_parameters({"corruption/probability": 1.0})


def source_digest(name: str) -> str:
    """Return a digest of the file an architecture is written in: a user changes his encoder and keeps its name."""
    file = Path(inspect.getfile(architecture(name)))
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def _epoch(count: int) -> int:
    return count * max(1, round(EPOCH_IMAGES / count))


def make_batches(
    job: JobConfig, data: TrainingData, model: AnomalyModel, device: torch.device
) -> ImageBatches | FeatureBatches:
    """Let a model meet the images; return what it trains on: features where it has a frozen encoder, else images."""
    model.roi = data.roi(device)
    model.meet(data.train_NHWC, data.cached)
    return (FeatureBatches if model.has_frozen_encoder else ImageBatches)(job, data, model, device)


def batches(
    images_NHWC: np.ndarray, device: torch.device, batch_size: int, chosen_N: np.ndarray | None = None
) -> Iterator[Tensor]:
    """Yield float32 B×3×H×W batches in [0, 1] of uint8 images, in order: of all, or of those at some positions."""
    for first in range(0, len(images_NHWC if chosen_N is None else chosen_N), batch_size):
        part = slice(first, first + batch_size)
        batch_BHWC = shared(images_NHWC[part if chosen_N is None else chosen_N[part]]).to(device)
        yield batch_BHWC.permute(0, 3, 1, 2).float().div_(255).contiguous(memory_format=torch.channels_last)
