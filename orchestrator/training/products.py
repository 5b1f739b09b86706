"""The products that one network is trained on, mostly one: each has its own images, batches, scoring and thresholds.

With several, the network is the same for all of them but for what it decides when it meets the images of one: where the
region of interest is, and how its parts are straightened. That is put in place before it looks at a product's images.
Every batch has as many images of one product as of any other, however many each has.

Tensors are named by shape: B images of a batch, C channels, H×W pixels, N images of a set.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from msad.models.base import AnomalyModel, Encoded
from msad.models.scoring import Choice, Scorer
from msad.training.batches import FeatureBatches, ImageBatches, PlainBatches, make_batches
from msad.training.cross_fitting import fit_delivered
from msad.training.job_config import JobConfig
from msad.training.training_data import TrainingData
from msad.training.validation import BestCheckpoint, Fitted, Thresholds, validate

Batches = FeatureBatches | ImageBatches | PlainBatches
Settled = tuple[Scorer, Thresholds, list[int]]


class Products:
    """What a network sees of its products, in their order.

    Parameters
    ----------
    job
        Of all of them together.
    data
        One or more; with several, all images have one size.
    model
        The network, which meets the images of each.
    device
        Where it is.
    plain
        Whether it trains itself, and needs no batches to train on.
    """

    def __init__(
        self,
        job: JobConfig,
        data: Sequence[TrainingData],
        model: AnomalyModel,
        device: torch.device,
        *,
        plain: bool = False,
    ) -> None:
        self._job, self._model, self.data = job, model, tuple(data)
        self.batches: list[Batches] = []
        states = []
        for one in self.data:
            self.batches.append(PlainBatches(job, one, device) if plain else make_batches(job, one, model, device))
            if len(self.data) > 1:
                states.append({name: value.clone() for name, value in model.state_dict().items()})
        self._own = _differing(states)

    @property
    def batch_size(self) -> int:
        """The job's, raised until each product has the same number of images in a batch."""
        return -(-self._job.batch_size // len(self.data)) * len(self.data)

    @property
    def on_device(self) -> bool:
        """Whether `draw` reads nothing from the host."""
        return all(one.on_device for one in self.batches)

    def __len__(self) -> int:
        """How many images an epoch shows."""
        if self._job.steps:
            return -(-self._job.steps // self._job.epochs) * self.batch_size
        return self._images

    @property
    def _images(self) -> int:
        return sum(map(len, self.batches))

    def order(self) -> tuple[Tensor, ...]:
        """Return an epoch's batches as positions in a random order: all images once, before any is shown again."""
        once, shown = self._images, len(self)
        rounds = [first + torch.randperm(once) for first in range(0, shown, once)]
        return torch.cat(rounds)[:shown].split(self.batch_size)

    def stream(self, indices: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield one batch after the other, on the device; see `msad.training.batches`."""
        if len(self.batches) == 1:
            return self.batches[0].stream(indices)
        of_each = zip(*map(self._parts, indices), strict=True)
        streams = [one.stream(of_one) for one, of_one in zip(self.batches, of_each, strict=True)]
        return (torch.cat(parts) for parts in zip(*streams, strict=True))

    def draw(
        self, batch: Tensor, generator: torch.Generator, part: slice = slice(None)
    ) -> tuple[Encoded, Encoded, Tensor]:
        """Return a batch clean, corrupted, and the mask, each product's augmented and corrupted as it alone would be.

        Of several products a batch is never parted among workers: `part` is all of it.
        """
        if len(self.batches) == 1:
            return self.batches[0].draw(batch, generator, part)
        parts = zip(self.batches, self._parts(batch), strict=True)
        drawn = [one.draw(rows, generator) for one, rows in parts if len(rows)]
        return tuple(map(_joined, zip(*drawn, strict=True)))

    def _parts(self, batch: Tensor) -> tuple[Tensor, ...]:
        """Return each product's part of a batch: alike, but for the last batch of an epoch."""
        return batch.tensor_split(len(self.batches))

    def adapt(self) -> None:
        """Let the network look at the good images before its first step: at what is inside of the regions alone."""
        if all(one.roi is None or isinstance(one, ImageBatches) for one in self.batches):
            self._model.adapt(features for features, _ in self._clean())
        else:
            clean, inside = itertools.tee(self._clean())  # which are gone through in step
            self._model.adapt_inside((features for features, _ in clean), (share for _, share in inside))

    def _clean(self) -> Iterator[tuple[Encoded, Tensor | None]]:
        """Yield the good images of one product after the other, and which share of each place is inside."""
        for place, one in enumerate(self.batches):
            self.turn_to(place)
            if one.roi is not None and isinstance(one, FeatureBatches):
                yield from zip(one.clean(), one.inside(), strict=True)
            else:
                yield from ((images, _everywhere(images)) for images in one.clean())

    def turn_to(self, place: int) -> None:
        """Make the network one product's, by its place: what it has decided on meeting that one's images."""
        if self._own:
            if own := self._own[place]:
                self._model.load_state_dict(own, strict=False)
            self._model.roi = self.batches[place].roi

    def without(self, place: int, left_out_N: np.ndarray) -> AnomalyModel | None:
        """Return what the network would be, had it not looked at some images of one product; see `AnomalyModel`."""
        shown, count = [one.shown for one in self.batches], self.batches[place].count
        if len(shown) == 1:
            return self._model.without(left_out_N, count)
        first = sum(shown[:place])
        views_V1 = np.arange(first, first + shown[place], count)[:, None]
        return self._model.without((views_V1 + left_out_N).ravel(), sum(shown))

    def validate(self) -> list[Choice]:
        """Choose each product's scoring; see `msad.training.validation.validate`."""
        choices = []
        for place, (batches, data) in enumerate(zip(self.batches, self.data, strict=True)):
            self.turn_to(place)
            choices.append(validate(self._model, batches, data, self._job))
        return choices

    def settle(self, choices: Sequence[Choice]) -> list[Settled]:
        """Fit each product's scorer and thresholds; see `msad.training.cross_fitting.fit_delivered`."""
        settled = []
        for place, (batches, data, choice) in enumerate(zip(self.batches, self.data, choices, strict=True)):
            self.turn_to(place)
            without = partial(self.without, place)
            settled.append(fit_delivered(self._job, self._model, batches, data, choice.scorer.scoring, without))
        return settled

    def fitted(self, settled: Sequence[Settled], best: BestCheckpoint) -> list[Fitted]:
        """Return what each product makes of the network, which holds its best weights: of several, of a copy of it."""
        made = []
        for place, (validation, (scorer, thresholds, also_scored)) in enumerate(
            zip(best.validations, settled, strict=True)
        ):
            self.turn_to(place)
            model = copy.deepcopy(self._model) if self._own else self._model
            kept = {"epoch": best.epoch, "validation": validation.to_dict(), "also_scored": tuple(also_scored)}
            made.append(Fitted(model=model.eval(), scorer=scorer, **kept, **vars(thresholds)))
        return made


def _differing(states: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Return of each state what is not the same in all of them; none of a state alone."""
    if not states:
        return []
    first = states[0]
    names = [name for name, value in first.items() if any(not torch.equal(value, other[name]) for other in states)]
    return [{name: state[name] for name in names} for state in states]


def _joined(parts: Sequence[Encoded]) -> Encoded:
    """Return the images of one product behind those of another, or their features stage by stage."""
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    return tuple(torch.cat(stage) for stage in zip(*parts, strict=True))


def _everywhere(images: Encoded) -> Tensor:
    finest = images if isinstance(images, Tensor) else images[0]
    return finest.new_ones(len(finest), 1, *finest.shape[-2:])
