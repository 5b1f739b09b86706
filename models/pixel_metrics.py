"""Pixel metrics of a whole test set and of groups of its images, exact, from one pass.

Only the thresholds at defect pixels matter to any of the metrics, and defects are few. So the values of normal pixels
are sorted alone, without a payload (numpy sorts those with SIMD), once for each group, and every defect value is looked
up among them: counts of several groups simply add up.

Shapes: H×W pixels of one image; P defect pixels by rising value, K distinct values among them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch

from models.errors import ModelError
from models.region_overlap import area_below, region_numbers

Item = TypeVar("Item")
Result = TypeVar("Result")
_Image = tuple[np.ndarray, np.ndarray, str | None]  # map, mask and group

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
    return _measure((values, mask, None) for values, mask in _in_step(maps, masks))[0]


def grouped_pixel_metrics(
    maps: Iterable[np.ndarray], masks: Iterable[np.ndarray], groups: Iterable[str | None]
) -> tuple[PixelMetrics, dict[str, PixelMetrics]]:
    """Measure anomaly maps against ground-truth masks, all of them and group by group.

    All are read once and in step, so generators keep the memory down to the maps' values themselves (4 bytes a pixel
    for float32, in the order of 100 more for a defect pixel). Ties count
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

    Returns
    -------
    tuple
        The figures over all images; and by group, in order of first appearance, those over its images and the images
        without a group.

    Raises
    ------
    ModelError
        A map has a NaN or no pixel, or differs from its mask in size, or there are more of one than of another, or
        none at all.
    """
    return _measure((values, mask, group) for (values, mask), group in _in_step(_in_step(maps, masks), groups))


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
    try:
        yield from zip(first, second, strict=True)
    except ValueError as error:
        if isinstance(error, ModelError) or "zip()" not in str(error):
            raise
        raise ModelError(f"as many anomaly maps as masks and groups are needed: {error}") from error


def _measure(images: Iterable[_Image]) -> tuple[PixelMetrics, dict[str, PixelMetrics]]:
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # numpy lets go of the interpreter in all that takes long
        pixels = _collect(images, pool)
        values_K, *parts = _thresholds(pixels, pool)
        overall, *by_group = parts
        if len(values_K):
            for group, below_K, not_above_K in _rank(pixels.normal, values_K, pool):
                overall.add(below_K, not_above_K)
                for part in by_group if group == _SHARED else by_group[group - 1 : group]:
                    part.add(below_K, not_above_K)
        figures, *of_groups = pool.map(_Thresholds.figures, parts)
    return figures, dict(zip(pixels.names[1:], of_groups, strict=True))


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
    index, (values, mask, group) = numbered
    values, mask = np.asarray(values), np.asarray(mask)
    if values.shape != mask.shape or values.ndim != 2 or not values.size:
        raise ModelError(f"anomaly map {index} is {values.shape}, its mask {mask.shape}: both must be H×W of one size")
    values = values if np.issubdtype(values.dtype, np.floating) else values.astype(np.float64)
    mask = mask if mask.dtype == bool else mask != 0
    if np.isnan(values.min()):
        raise ModelError(f"anomaly map {index} has NaN values: the model that made it is broken")
    regions, sizes = region_numbers(mask)
    if not len(sizes):
        return group, values.ravel(), values[:0, 0], regions, sizes
    return group, values[~mask], values[mask], regions, sizes


def _ahead(pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Map in threads and in order, reading only a few items ahead."""
    running: deque[Future[Result]] = deque()
    for item in items:
        running.append(pool.submit(function, item))
        if len(running) > 2 * torch.get_num_threads():
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def _thresholds(pixels: _Pixels, pool: ThreadPoolExecutor) -> tuple[np.ndarray, ...]:
    """Return the distinct defect values, rising, and the `_Thresholds` of all images and of each group."""
    values_P = np.concatenate(pixels.values)
    order_P = np.argsort(values_P)
    values_P, region_P = values_P[order_P], np.concatenate(pixels.regions)[order_P]
    new_P = _differ(values_P)
    place_P = np.cumsum(new_P, dtype=np.int32) - 1
    weight_P = (1.0 / np.array(pixels.region_sizes, np.float64))[region_P]
    group_of_region = np.array(pixels.region_groups, np.int16)
    group_P = group_of_region[region_P]

    def of(groups: Sequence[int]) -> _Thresholds:
        everything = len(groups) == len(pixels.names)
        chosen_P = slice(None) if everything else np.isin(group_P, groups)
        regions = int(np.isin(group_of_region, groups).sum())
        normal = sum(len(pixels.normal[group]) for group in groups)
        return _Thresholds.of(place_P[chosen_P], weight_P[chosen_P], regions, normal)

    numbers = range(len(pixels.names))
    return values_P[new_P], *pool.map(of, [numbers, *((_SHARED, group) for group in numbers[1:])])


@dataclass
class _Thresholds:
    """The distinct defect values of some images, rising, and the pixels around each.

    `places_K` says where they are among the values of all images. `found_K` counts the defect pixels at or above each,
    `step_K` is what those at it add to the mean overlap. The normal pixels below it and not above it are added up.
    """

    places_K: np.ndarray
    found_K: np.ndarray
    step_K: np.ndarray
    normal: int
    below_K: np.ndarray
    not_above_K: np.ndarray

    @classmethod
    def of(cls, places_P: np.ndarray, weight_P: np.ndarray, regions: int, normal: int) -> _Thresholds:
        starts_K = np.flatnonzero(_differ(places_P))
        step_K = np.add.reduceat(weight_P, starts_K) / regions if regions else np.zeros(0)
        counts = (np.zeros(len(starts_K), np.int64) for _ in range(2))
        return cls(places_P[starts_K], len(places_P) - starts_K, step_K, normal, *counts)

    def add(self, below_K: np.ndarray, not_above_K: np.ndarray) -> None:
        """Add the normal pixels of a group, counted around the values of all images."""
        everything = len(self.places_K) == len(below_K)
        self.below_K += below_K if everything else below_K[self.places_K]
        self.not_above_K += not_above_K if everything else not_above_K[self.places_K]

    def figures(self) -> PixelMetrics:
        defect, normal = int(self.found_K[0]) if len(self.found_K) else 0, self.normal
        prevalence = defect / (defect + normal)
        if not defect:
            return PixelMetrics(np.nan, np.nan, prevalence, np.nan, np.nan)
        true_K = -np.diff(self.found_K, append=0)
        false_K = normal - self.below_K
        precision_K = self.found_K / (self.found_K + false_K)
        average_precision = min(1.0, float(np.dot(true_K, precision_K)) / defect)
        if not normal:
            return PixelMetrics(np.nan, average_precision, prevalence, np.nan, np.nan)
        # Twice the normal pixels below, ties once; in whole numbers, so exact.
        beaten = int(np.dot(true_K, self.below_K) + np.dot(true_K, self.not_above_K))
        curve = self.step_K, normal - self.not_above_K, false_K, normal
        return PixelMetrics(
            beaten / (2 * defect * normal),
            average_precision,
            prevalence,
            area_below(*curve, limit=0.3),
            area_below(*curve, limit=0.05),
        )


def _differ(sorted_values: np.ndarray) -> np.ndarray:
    """Tell which values differ from the one before; the first one does."""
    differ = np.ones(len(sorted_values), dtype=bool)
    np.not_equal(sorted_values[1:], sorted_values[:-1], out=differ[1:])
    return differ


def _rank(
    normal: list[_Values], values_K: np.ndarray, pool: ThreadPoolExecutor
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield a group, and how many of its normal pixels are below and not above each value; large groups in parts."""
    share = max(1, sum(map(len, normal)) // torch.get_num_threads())
    jobs = [
        (group, part)
        for group, values in enumerate(normal)
        for part in np.array_split(values.array(), max(1, round(len(values) / share)))
    ]

    def count(job: tuple[int, np.ndarray]) -> tuple[int, np.ndarray, np.ndarray]:
        group, part = job
        part.sort()  # in place: these are views
        values = values_K.astype(np.result_type(values_K, part), copy=False)
        return group, np.searchsorted(part, values, side="left"), np.searchsorted(part, values, side="right")

    return _ahead(pool, count, jobs)
