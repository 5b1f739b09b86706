"""The thresholds that matter to pixel metrics, the defect pixels' values, and what they add up to in sets of images.

All metrics are sums over these thresholds. They are taken in blocks of rising value: a block's arrays stay in the
processor's cache, blocks are independent, so that threads share them, and memory does not grow with the number of
defect pixels beyond their values and regions.

Shapes: P defect pixels of all images, B of one block, by rising value; K distinct values of some set of images among
these; R regions.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from msad.models.metrics.region_overlap import area_below

LIMITS = (0.3, 0.05)
"""The false-positive rates to which AU-PRO is integrated."""
_BLOCK = 1 << 15  # pixels

SortedPart = tuple[int, np.ndarray]  # a group, and normal values of it, rising


@dataclass(frozen=True)
class Sums:
    """What thresholds add up to.

    `beaten`: twice the normal pixels below each defect pixel, ties once; whole, so that the AUROC is exact. `rest`: the
    precisions at each defect pixel, and the area of mean overlap to each of `LIMITS`, in normal pixels.
    """

    beaten: int = 0
    rest: tuple[float, ...] = (0.0,) * (1 + len(LIMITS))

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.beaten + other.beaten, tuple(map(sum, zip(self.rest, other.rest, strict=True))))


@dataclass(frozen=True)
class PixelSet:
    """The images of some groups: their regions, defect pixels and normal pixels."""

    groups: Sequence[int]
    regions: int
    defect: int
    normal: int

    def measure(
        self, true_K: np.ndarray, step_K: np.ndarray, lower: int, below_K: np.ndarray, not_above_K: np.ndarray
    ) -> Sums:
        """Add up thresholds at which there are `true_K` defect pixels, with `lower` more below all of them.

        `step_K` is the sum of these pixels' shares in their regions; `below_K` and `not_above_K` count normal pixels.
        """
        found_K = self.defect - lower - np.cumsum(true_K) + true_K
        false_K = self.normal - below_K
        # Not np.dot: BLAS starts threads of its own for long arrays, and these wait for processors that are in use.
        precision = float(np.sum(true_K * (found_K / (found_K + false_K))))
        curve = step_K / self.regions, self.normal - not_above_K, false_K
        areas = (area_below(*curve, limit * self.normal) for limit in LIMITS)
        return Sums(int(np.sum(true_K * (below_K + not_above_K))), (precision, *areas))


@dataclass(frozen=True)
class Defects:
    """The defect pixels of all images: value and region of each; group of each region, and a pixel's share in it."""

    values_P: np.ndarray
    region_P: np.ndarray
    group_R: np.ndarray
    share_R: np.ndarray

    @classmethod
    def of(cls, values_P: np.ndarray, region_P: np.ndarray, size_R: Sequence[int], group_R: Sequence[int]) -> Defects:
        """Sort pixels that come in any order."""
        order_P = np.argsort(values_P)
        groups, shares = np.array(group_R, np.int64), 1 / np.array(size_R, np.float64)
        return cls(values_P[order_P], region_P[order_P], groups, shares)

    def set_of(self, groups: Sequence[int], normal: int) -> PixelSet:
        """Return the set of some groups, which have so many normal pixels."""
        regions = np.flatnonzero(np.isin(self.group_R, groups))
        return PixelSet(groups, len(regions), round(float(np.sum(1 / self.share_R[regions]))), normal)

    def blocks(self) -> list[tuple[slice, np.ndarray]]:
        """Cut the pixels into blocks, never between equal values; with each, how many of every group are below it."""
        if not len(self.values_P):
            return []
        firsts = np.unique(np.searchsorted(self.values_P, self.values_P[::_BLOCK], side="left")).tolist()
        groups = int(self.group_R.max()) + 1
        blocks, lower = [], np.zeros(groups, np.int64)
        for first, end in itertools.pairwise([*firsts, len(self.values_P)]):
            blocks.append((slice(first, end), lower))
            lower = lower + np.bincount(self.group_R[self.region_P[first:end]], minlength=groups)
        return blocks

    def measure(
        self, block: tuple[slice, np.ndarray], normal: Sequence[SortedPart], sets: Sequence[PixelSet]
    ) -> list[Sums]:
        """Return what a block adds to each set."""
        chosen, lower = block
        values_B, region_B = self.values_P[chosen], self.region_P[chosen]
        share_B, group_B = self.share_R[region_B], self.group_R[region_B]
        ranks = [(group, *_rank(part, values_B)) for group, part in normal]
        sums = []
        for images in sets:
            member_G = np.isin(np.arange(len(lower)), images.groups)
            inside = slice(None) if member_G.all() else np.flatnonzero(member_G[group_B])
            values = values_B[inside]
            if not len(values):
                sums.append(Sums())
                continue
            starts_K = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
            true_K = np.diff(starts_K, append=len(values))
            step_K = np.add.reduceat(share_B[inside], starts_K)
            at_K = starts_K if member_G.all() else inside[starts_K]
            below_K, not_above_K = np.zeros(len(at_K), np.int64), np.zeros(len(at_K), np.int64)
            for group, below_B, not_above_B in ranks:
                if group in images.groups:
                    below_K += below_B[at_K]
                    not_above_K += not_above_B[at_K]
            sums.append(images.measure(true_K, step_K, int(lower[member_G].sum()), below_K, not_above_K))
        return sums


def _rank(part: np.ndarray, values_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count the sorted values of a part below each of the rising `values_B`, and those not above it."""
    first, end = np.searchsorted(part, values_B[0], side="left"), np.searchsorted(part, values_B[-1], side="right")
    near = part[first:end]  # a short search, and in the cache
    below_B = np.searchsorted(near, values_B, side="left")
    not_above_B = below_B.copy()
    if len(near):
        tied = np.flatnonzero(near[np.minimum(below_B, len(near) - 1)] == values_B)
        not_above_B[tied] = np.searchsorted(near, values_B[tied], side="right")
    return below_B + first, not_above_B + first
