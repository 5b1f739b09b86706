"""Pixel metrics of a whole test set and of groups of its images, exact, from one pass.

Only the thresholds at defect pixels matter to any of the metrics, and defects are few. So the values of normal pixels
are sorted alone, without a payload (numpy sorts those with SIMD), once for each group, and every defect value is looked
up among them: counts of several groups simply add up.

Shapes: H×W pixels of one image; P defect pixels by rising value, K distinct values among them.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch

from msad.models.errors import ModelError
from msad.models.metrics.pixel_thresholds import LIMITS, Defects, PixelSet, SortedPart, Sums
from msad.models.metrics.region_overlap import region_numbers

Item = TypeVar("Item")
Result = TypeVar("Result")
_Image = tuple[np.ndarray, np.ndarray, str | None, np.ndarray | None]  # map, mask, group, and what counts

_SHARED = 0  # the number of the group that counts in all others


@dataclass(frozen=True)
class PixelMetrics:
    """Figures over all pixels of a set of images, each in [0, 1].

    `auroc`; `average_precision` and its chance level `prevalence`; `aupro_30` and `aupro_05`, the area under the
    region-overlap curve up to a false-positive rate of 0.3 and 0.05. nan where a figure has no meaning: everything but
    `prevalence` without a defect pixel; `auroc`, `aupro_30` and `aupro_05` without a normal pixel. Constant maps give
    0.5, the prevalence, 0.15 and 0.025: what a coin would.
    """

    auroc: float
    average_precision: float
    prevalence: float
    aupro_30: float
    aupro_05: float


def pixel_metrics(maps: Iterable[np.ndarray], masks: Iterable[np.ndarray]) -> PixelMetrics:
    """Measure anomaly maps against ground-truth masks: `grouped_pixel_metrics` without groups."""
    return _measure((values, mask, None, None) for values, mask in _in_step(maps, masks))[0]


def grouped_pixel_metrics(
    maps: Iterable[np.ndarray],
    masks: Iterable[np.ndarray],
    groups: Iterable[str | None],
    inside: Iterable[np.ndarray] | None = None,
) -> tuple[PixelMetrics, dict[str, PixelMetrics]]:
    """Measure anomaly maps against ground-truth masks, all of them and group by group.

    All are read once and in step, so generators keep the memory down to the maps' values themselves (4 bytes a pixel
    for float32, about 30 more for a defect pixel). Ties count
    half in the AUROC, are one threshold in the average precision and a straight piece of the region-overlap curve.
    Works on as many threads as torch does.

    Parameters
    ----------
    maps
        H×W floats each, higher = more anomalous; sizes may differ from image to image. float32 is fastest.
    masks
        H×W each, nonzero = defect, of the size of their map.
    groups
        The group of each image, for example its type of defect. None: the image counts in every group, as the good
        ones do.
    inside
        bool H×W each: the pixels that count. None: all do.

    Returns
    -------
    tuple
        The figures over all images; and by group, in order of first appearance, those over its images and the images
        without a group.

    Raises
    ------
    ModelError
        A map has a NaN or no pixel, or differs in size from its mask or from what counts of it, or there are more of
        one than of another, or none at all.
    """
    images = ((*pair, group) for pair, group in _in_step(_in_step(maps, masks), groups))
    if inside is None:
        return _measure((*image, None) for image in images)
    return _measure((*image, places) for image, places in _in_step(images, inside))


class _Values:
    """Values of image after image in one array that grows in place, so that nothing is held twice."""

    def __init__(self) -> None:
        self._room, self._count = np.empty(0, np.float32), 0

    def __len__(self) -> int:
        return self._count

    def append(self, values: np.ndarray) -> None:
        end = self._count + len(values)
        if not np.can_cast(values.dtype, self._room.dtype):
            self._room = self._room.astype(values.dtype)
        if end > len(self._room):
            self._room.resize(max(end, len(self._room) * 5 // 4), refcheck=False)
        self._room[self._count : end] = values
        self._count = end

    def array(self) -> np.ndarray:
        return self._room[: self._count]


@dataclass
class _Pixels:
    """All pixels, split: the normal values of each group; of the defect pixels their values and regions.

    Groups go by number, images without one by `_SHARED`. `values` and `regions` have an entry per image with a defect,
    `region_sizes` and `region_groups` one per region.
    """

    names: list[str | None] = field(default_factory=lambda: [None])
    normal: list[_Values] = field(default_factory=lambda: [_Values()])
    values: list[np.ndarray] = field(default_factory=lambda: [np.zeros(0, np.float32)])
    regions: list[np.ndarray] = field(default_factory=lambda: [np.zeros(0, np.int32)])
    region_sizes: list[int] = field(default_factory=list)
    region_groups: list[int] = field(default_factory=list)


def _in_step(first: Iterable, second: Iterable) -> Iterator[tuple]:
    missing = object()
    for pair in itertools.zip_longest(first, second, fillvalue=missing):
        if any(part is missing for part in pair):
            raise ModelError("as many anomaly maps as masks and groups are needed; there are fewer of one")
        yield pair


def _measure(images: Iterable[_Image]) -> tuple[PixelMetrics, dict[str, PixelMetrics]]:
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # numpy lets go of the interpreter in all that takes long
        pixels = _collect(images, pool)
        numbers = range(len(pixels.names))
        defects = Defects.of(
            np.concatenate(pixels.values), np.concatenate(pixels.regions), pixels.region_sizes, pixels.region_groups
        )
        sets = [
            defects.set_of(groups, sum(len(pixels.normal[group]) for group in groups))
            for groups in (numbers, *((_SHARED, group) for group in numbers[1:]))
        ]
        blocks = defects.blocks()
        parts = _sorted(pixels.normal, pool) if blocks else []
        sums = [Sums()] * len(sets)
        for of_block in pool.map(lambda block: defects.measure(block, parts, sets), blocks):
            sums = [total + more for total, more in zip(sums, of_block, strict=True)]
    overall, *by_group = map(_figures, sets, sums)
    return overall, dict(zip(pixels.names[1:], by_group, strict=True))


def _figures(images: PixelSet, sums: Sums) -> PixelMetrics:
    defect, normal, (precision, *areas) = images.defect, images.normal, sums.rest
    prevalence = defect / (defect + normal)
    if not defect:
        return PixelMetrics(np.nan, np.nan, prevalence, np.nan, np.nan)
    average_precision = min(1.0, precision / defect)
    if not normal:
        return PixelMetrics(np.nan, average_precision, prevalence, np.nan, np.nan)
    aupro = (min(1.0, max(0.0, area / (limit * normal))) for area, limit in zip(areas, LIMITS, strict=True))
    return PixelMetrics(sums.beaten / (2 * defect * normal), average_precision, prevalence, *aupro)


def _collect(images: Iterable[_Image], pool: ThreadPoolExecutor) -> _Pixels:
    pixels, numbers = _Pixels(), {None: _SHARED}
    for name, normal, values, regions, sizes in _ahead(pool, _split, enumerate(images)):
        group = numbers.setdefault(name, len(numbers))
        if group == len(pixels.names):
            pixels.names.append(name)
            pixels.normal.append(_Values())
        pixels.normal[group].append(normal)
        if len(sizes):
            pixels.values.append(values)
            pixels.regions.append(regions + len(pixels.region_sizes))
            pixels.region_sizes += sizes.tolist()
            pixels.region_groups += [group] * len(sizes)
    if not pixels.region_sizes and not any(map(len, pixels.normal)):
        raise ModelError("pixel metrics need at least one anomaly map with its mask")
    return pixels


def _split(numbered: tuple[int, _Image]) -> tuple[str | None, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return an image's group, its normal values, its defect values, and their regions and the sizes of these."""
    index, (values, mask, group, inside) = numbered
    values, mask = np.asarray(values), np.asarray(mask)
    if values.shape != mask.shape or values.ndim != 2 or not values.size:
        raise ModelError(f"anomaly map {index} is {values.shape}, its mask {mask.shape}: both must be H×W of one size")
    values = values if np.issubdtype(values.dtype, np.floating) else values.astype(np.float64)
    mask = mask if mask.dtype == bool else mask != 0
    if np.isnan(values.min()):
        raise ModelError(f"anomaly map {index} has NaN values: the model that made it is broken")
    if inside is not None:
        if inside.shape != mask.shape:
            raise ModelError(f"anomaly map {index} is {values.shape}, what counts of it {inside.shape}")
        mask = mask & inside
    regions, sizes = region_numbers(mask)
    if not len(sizes) and inside is None:
        return group, values.ravel(), values[:0, 0], regions, sizes
    normal = ~mask if inside is None else inside & ~mask
    return group, values[normal], values[mask], regions, sizes


def _ahead(pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Map in threads and in order, reading only a few items ahead."""
    running: deque[Future[Result]] = deque()
    for item in items:
        running.append(pool.submit(function, item))
        if len(running) > 2 * torch.get_num_threads():
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def _sorted(normal: list[_Values], pool: ThreadPoolExecutor) -> list[SortedPart]:
    """Sort the normal values of every group in place, large groups in parts: counts of parts add up."""
    share = max(1, sum(map(len, normal)) // torch.get_num_threads())
    parts = [
        (group, part)
        for group, values in enumerate(normal)
        for part in np.array_split(values.array(), max(1, round(len(values) / share)))
    ]
    list(pool.map(lambda part: part[1].sort(), parts))
    return parts
