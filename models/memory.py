"""A memory of good features: how far a place is from the nearest that good images have shown.

After PatchCore (Roth et al., arXiv 2106.08265). What differs: the features of every stage are brought to the same mean
square by the good images, so that no stage outvotes another by its scale or its channels; the coreset is chosen among
a bounded uniform sample of all places, not among all of them, so that memory does not grow with the category; the rows
are kept in half precision; the search is exact, in single precision; and the distance to the nearest is not reweighted
by how dense its neighbourhood is.

Tensors are named by shape: B images, C channels, H×W places, N places of all images, R rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CANDIDATES = 16_384
"""Places among which a coreset is chosen: a uniform sample of all."""

_PROJECTED = 32  # dimensions in which a coreset is chosen: distances there are within a fifth, for a tenth of the work
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
        """The sample, float32, in the order of the stream."""
        if self._rows is None:
            raise ValueError("nothing was added")
        return self._rows.float()


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
    nearest_N = torch.full_like(length_N, math.inf)
    chosen = torch.empty(count, dtype=torch.int64, device=rows_NC.device)
    at = torch.tensor(first, device=rows_NC.device)
    for step in range(count):  # nothing here waits for a GPU
        chosen[step] = at
        # Without the squared length of the chosen row, which all share, there would be no distance to compare.
        distance_N = length_N - 2 * (rows_NC @ rows_NC[at]) + length_N[at]
        nearest_N = torch.minimum(nearest_N, distance_N)
        at = nearest_N.argmax()
    return chosen


def nearest(places_NC: Tensor, bank_RC: Tensor, neighbours: int = 1) -> Tensor:
    """Return the mean distance of each place to its nearest rows, N, exact to the last digits.

    The nearest are found by one matrix product, whose distances lose half of their digits where a place equals a row;
    those to the few that were found are then computed again by differences.
    """
    half_R, parts = bank_RC.square().sum(dim=1) / 2, []
    # An exported graph leaves the number of places open, so it takes them at once.
    each = [places_NC] if torch.compiler.is_exporting() else places_NC.split(max(1, _AT_ONCE // len(bank_RC)))
    for part_NC in each:
        likeness_NR = part_NC @ bank_RC.T - half_R  # the larger, the nearer
        if neighbours == 1:
            found_NK = likeness_NR.argmax(dim=1, keepdim=True)
        else:
            found_NK = likeness_NR.topk(min(neighbours, len(bank_RC)), dim=1, sorted=False).indices
        parts.append((part_NC.unsqueeze(1) - bank_RC[found_NK]).square().sum(dim=2).sqrt().mean(dim=1))
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

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return the distances of all places from the bank, B×1×H×W."""
        places_BHWC = self.places(features)
        distance_N = nearest(places_BHWC.flatten(0, 2), self.bank_RC.float(), self.neighbours)
        return distance_N.view(places_BHWC.shape[:-1]).unsqueeze(1)
