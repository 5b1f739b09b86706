"""A memory of good features: how far a place is from the nearest that good images have shown.

After PatchCore (Roth et al., arXiv 2106.08265). What differs: the features of every stage are brought to the same mean
square by the good images, so that no stage outvotes another by its scale or its channels; the coreset is chosen among
a bounded uniform sample of all places, not among all of them, so that memory does not grow with the category; the rows
are kept in half precision; a large bank is searched along its main axes first, and then exactly among the few that were
found; and the distance to the nearest is not reweighted by how dense its neighbourhood is.

Tensors are named by shape: B images, C channels, H×W places, N places of all images, R rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

CANDIDATES = 131_072
"""Places among which a coreset is chosen: a uniform sample of all."""

EXACT = 4096
"""Rows of a bank that is searched exactly; a larger one along its main axes first."""

_AXES = 64  # principal axes of a large bank, along which the nearest row is looked for first
_FOUND = 16  # parts of a bank, each of which offers the row that is the nearest along these

_PROJECTED = 32  # dimensions in which a coreset is chosen: distances there are within a fifth, for a tenth of the work
_LOOKED_AT = 64  # of the farthest rows, among which the next ones of a coreset are
_AT_ONCE = 1 << 23  # distances that are in memory at once: 32 MiB


class Sample:
    """A uniform random sample of at most `most` rows of a stream whose length nobody knows.

    Every row draws a number, and the rows with the smallest are kept.

    Attributes
    ----------
    sources
        int64, of which image each kept row is, as `add` was told.
    """

    def __init__(self, most: int, seed: int = 0) -> None:
        self._most, self._generator = most, torch.Generator().manual_seed(seed)
        self._rows: Tensor | None = None
        self._drawn, self.sources = torch.empty(0), torch.empty(0, dtype=torch.int64)

    def add(self, rows_NC: Tensor, source_N: Tensor) -> None:
        """Offer more rows and their sources, which are on the CPU; only those that are kept are copied."""
        drawn_N = torch.rand(len(rows_NC), generator=self._generator)
        drawn = torch.cat([self._drawn, drawn_N])
        kept = drawn.topk(min(self._most, len(drawn)), largest=False).indices.sort().values
        before = kept[kept < len(self._drawn)]
        new = (kept[len(before) :] - len(self._drawn)).to(rows_NC.device)
        rows = rows_NC[new].half()
        if self._rows is not None:
            rows = torch.cat([self._rows[before.to(rows.device)], rows])
        self.sources = torch.cat([self.sources, source_N])[kept]
        self._rows, self._drawn = rows, drawn[kept]

    @property
    def rows(self) -> Tensor:
        """The sample, as it is kept: float16, in the order of the stream."""
        if self._rows is None:
            raise ValueError("nothing was added")
        return self._rows


def coreset(rows_NC: Tensor, count: int, seed: int = 0) -> Tensor:
    """Choose rows that cover all others: each next one is the farthest from those chosen, in a random projection.

    Parameters
    ----------
    rows_NC
        float32.
    count
        How many; all where there are no more.
    seed
        Of the projection and of the first row.

    Returns
    -------
    Tensor
        int64, the places of the chosen rows in the order they were chosen.
    """
    if count >= len(rows_NC):
        return torch.arange(len(rows_NC), device=rows_NC.device)
    generator = torch.Generator().manual_seed(seed)
    first = int(torch.randint(len(rows_NC), (1,), generator=generator))
    if rows_NC.shape[1] > _PROJECTED:
        rows_NC = rows_NC @ torch.randn(rows_NC.shape[1], _PROJECTED, generator=generator).to(rows_NC.device)
    length_N = rows_NC.square().sum(dim=1)
    least_N = torch.full_like(length_N, math.inf)  # the least squared distance, but for the squared length of the row
    chosen_K = torch.tensor([first], device=rows_NC.device)
    chosen = [chosen_K]
    while (missing := count - sum(map(len, chosen))) > 0:
        away_NK = torch.addmm(length_N[chosen_K], rows_NC, rows_NC[chosen_K].T, alpha=-2)
        least_N = torch.minimum(least_N, away_NK.amin(dim=1))
        chosen_K = _farthest(rows_NC, least_N + length_N)[:missing]
        chosen.append(chosen_K)
    return torch.cat(chosen)


def _farthest(rows_NC: Tensor, square_N: Tensor) -> Tensor:
    """Return the next rows, each the farthest from those chosen and those before it: as many as can be told at once.

    Whatever is chosen next, no distance grows: the last of the farthest few bounds those of all others, and as long as
    one of the few is farther, it is the farthest of all.
    """
    farthest = square_N.topk(min(_LOOKED_AT, len(square_N)))
    rows_FC, square_F = rows_NC[farthest.indices], farthest.values.cpu().numpy()
    between_FF = torch.cdist(rows_FC, rows_FC).square().cpu().numpy()
    np.fill_diagonal(between_FF, -np.inf)  # none is chosen twice, whatever rounding says
    places, left_F = [0], np.minimum(square_F, between_FF[0])
    while left_F.max() > square_F[-1]:
        places.append(int(left_F.argmax()))
        left_F = np.minimum(left_F, between_FF[places[-1]])
    return farthest.indices[places]


def nearest(places_NC: Tensor, bank_RC: Tensor, neighbours: int = 1) -> Tensor:
    """Return the mean distance of each place to its nearest rows, N, exact to the last digits.

    The nearest are found by one matrix product, whose distances lose half of their digits where a place equals a row;
    those to the few that were found are then computed again by differences.
    """

    def found(part_NC: Tensor) -> Tensor:
        likeness_NR = part_NC @ bank_RC.T - half_R  # the larger, the nearer
        if neighbours == 1:
            return likeness_NR.argmax(dim=1, keepdim=True)
        return likeness_NR.topk(min(neighbours, len(bank_RC)), dim=1, sorted=False).indices

    half_R = bank_RC.square().sum(dim=1) / 2
    return _distances(places_NC, bank_RC, found).mean(dim=1)


def nearly_nearest(places_NC: Tensor, bank_RC: Tensor, axes_CA: Tensor, along_RA: Tensor) -> Tensor:
    """Return the distance of each place to the nearest of the rows that are the nearest along some axes, N.

    Each of `_FOUND` parts of the bank offers one row. The rows are in the order in which a coreset chose them, each far
    from those before it, so those near a place lie in different parts. How often that is the very nearest one, how much
    further the others are and how much sooner it is found, `benchmarks/nearest.py` measures.

    Parameters
    ----------
    places_NC, bank_RC
        float32.
    axes_CA
        Orthonormal.
    along_RA
        The bank along these, float32.
    """

    def found(part_NC: Tensor) -> Tensor:
        likeness_NR = torch.addmm(-half_R, part_NC @ axes_CA, along_RA.T)
        if short := len(first_P) * rows - len(bank_RC):
            likeness_NR = F.pad(likeness_NR, (0, short), value=-math.inf)
        return likeness_NR.unflatten(1, (len(first_P), rows)).argmax(dim=2) + first_P

    rows = math.ceil(len(bank_RC) / _FOUND)
    first_P = torch.arange(0, len(bank_RC), rows, device=places_NC.device)
    half_R = along_RA.square().sum(dim=1) / 2
    return _distances(places_NC, bank_RC, found).amin(dim=1)


def _distances(places_NC: Tensor, bank_RC: Tensor, found: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the distances of each place to the rows that `found` names for it, by differences, N×K."""
    # An exported graph leaves the number of places open, so it takes them at once.
    each = [places_NC] if torch.compiler.is_exporting() else places_NC.split(max(1, _AT_ONCE // len(bank_RC)))
    parts = [(part_NC.unsqueeze(1) - bank_RC[found(part_NC)]).square().sum(dim=2).sqrt() for part_NC in each]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class Memory(nn.Module):
    """A bank of good places, and the map of distances to it.

    Parameters
    ----------
    channels
        Of the stages, finest first, which are joined at the finest one's size.
    rows
        Places that are kept.
    neighbourhood
        Side of the square of places that a place is the mean of; odd.
    neighbours
        Nearest rows whose distances are averaged.
    shares
        What each stage counts in a distance; None: all alike.

    Attributes
    ----------
    bank_RC
        float16, `rows` of them, so that a bundle's size is known by its configuration: zeros until `learn`, and some
        twice where good images have fewer places.
    axes_CA, along_RA
        Of a bank of more than `EXACT` rows of which one neighbour is asked for: its principal axes and the rows along
        them, float32, found anew wherever the bank is loaded.
    """

    def __init__(
        self,
        channels: Sequence[int],
        rows: int,
        neighbourhood: int = 3,
        neighbours: int = 1,
        shares: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.neighbourhood, self.neighbours = neighbourhood, neighbours
        self._shares = [1.0] * len(channels) if shares is None else list(shares)
        self.register_buffer("bank_RC", torch.zeros(rows, sum(channels), dtype=torch.float16))
        self._by_axes = rows > EXACT and neighbours == 1
        if self._by_axes:
            axes = min(_AXES, sum(channels))
            self.register_buffer("axes_CA", torch.zeros(sum(channels), axes), persistent=False)
            self.register_buffer("along_RA", torch.zeros(rows, axes), persistent=False)

    def places(self, features: Sequence[Tensor]) -> Tensor:
        """Join standardised features of all stages, B×C×H×W each, at the finest one's places: B×H×W×C.

        The square of a distance there is the mean over channels, summed over stages by the squares of their shares.
        """
        side, size, joined = self.neighbourhood, features[0].shape[-2:], []
        for f, share in zip(features, self._shares, strict=True):
            if side > 1:
                f = F.avg_pool2d(f, side, stride=1, padding=side // 2, count_include_pad=False)
            if f.shape[-2:] != size:
                f = F.interpolate(f, tuple(size), mode="bilinear")
            joined.append(f * (share / math.sqrt(f.shape[1])))
        return torch.cat(joined, dim=1).permute(0, 2, 3, 1)

    @torch.no_grad()
    def learn(self, candidates_NC: Tensor) -> None:
        """Keep the coreset of some `places`."""
        chosen = coreset(candidates_NC, len(self.bank_RC))
        self.bank_RC.copy_(candidates_NC[chosen[torch.arange(len(self.bank_RC), device=chosen.device) % len(chosen)]])
        self._find_axes()

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return the distances of all places from the bank, B×1×H×W."""
        places_BHWC = self.places(features)
        places_NC, bank_RC = places_BHWC.flatten(0, 2), self.bank_RC.float()
        if self._by_axes:
            distance_N = nearly_nearest(places_NC, bank_RC, self.axes_CA, self.along_RA)
        else:
            distance_N = nearest(places_NC, bank_RC, self.neighbours)
        return distance_N.view(places_BHWC.shape[:-1]).unsqueeze(1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if f"{prefix}bank_RC" in state_dict:
            self._find_axes()

    def _find_axes(self) -> None:
        if self._by_axes:
            bank_RC = self.bank_RC.float()
            centred_RC = bank_RC - bank_RC.mean(dim=0)
            axes_CC = torch.linalg.eigh(centred_RC.T @ centred_RC).eigenvectors  # of rising eigenvalues
            self.axes_CA.copy_(axes_CC[:, -self.axes_CA.shape[1] :])
            self.along_RA.copy_(bank_RC @ self.axes_CA)
