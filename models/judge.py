"""Looks at the maps of good and defective images once, and tells of every candidate how well it separates them.

All figures are of halves: the good images at even positions with the defective ones of that half, and those at odd
ones; what was changed and is good all the same is in the half of the image that it was made of. What is chosen on one
half is read on the other, see `msad.models.scoring`.

Shapes: G good images, the changed ones behind the others, D defective ones, H×W pixels; K candidates, R groups of
defects, two halves; maps are float32 G×1×H×W and D×1×H×W.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from msad.models.defects import HALVES, DefectGroups, counts
from msad.models.roi import Roi
from msad.models.scorer import (
    IMAGE_SCORE,
    OWN,
    Scoring,
    Statistics,
    blend,
    fit_statistics,
    fuse,
    reduce,
    standardise,
)
from msad.models.smoothing import smooth

_NORMAL_PIXELS = 4096  # of one image, for the pixel average precision; all defect pixels are taken

_TINY = 1e-6

_Shares = tuple[tuple[str, float], ...]
_Key = tuple[float, str, str, str | tuple[tuple[str, str], ...], _Shares, _Shares]


class Judge:
    """Looks at maps part by part, good images first, and keeps of each candidate the scores and a sample of pixels.

    `changed`: how many of the last good images are the first ones again, changed.

    Calibration must not be judged on the images it was fitted on: each half is scored with the statistics of the other.
    The two numbers per map that "none" needs hide nothing and come from all good images.

    Attributes
    ----------
    counts_2R
        Defective images of each half and group.
    prevalence_2R
        Share of defective pixels, which is the average precision of guessing; nan for a group without a mask.
    """

    def __init__(
        self,
        good_maps: Mapping[str, Tensor],
        defects: DefectGroups,
        candidates: Sequence[Scoring],
        roi: Roi | None = None,
        changed: int = 0,
    ) -> None:
        first, self._candidates, self._roi = next(iter(good_maps.values())), candidates, roi
        self.good_count, self._device, self._defects = len(first), first.device, defects
        self._good_half = np.concatenate([np.arange(count) % HALVES for count in (len(first) - changed, changed)])
        groups = range(len(defects.names))
        self._members = [[defects.members(half, group) for group in groups] for half in range(HALVES)]
        self.counts_2R = counts(defects.group, defects.half, len(groups))
        self._choose_pixels(defects)
        # All blends and reductions share the smoothed, standardised maps of a sigma.
        self._keys = {_map_key(scoring): scoring for scoring in candidates}
        self._reductions = {scoring.reduction for scoring in candidates}
        self._statistics = {
            sigma: self._fit(good_maps, [key for key in self._keys if key[0] == sigma])
            for sigma in dict.fromkeys(scoring.smoothing for scoring in candidates)
        }
        # Made at once: small results that are kept between large maps that are not would leave the memory in pieces.
        images, pixels = self.good_count + len(defects), self._pixel_count
        self._scores = {
            (key, reduction): torch.empty(images, device=self._device)
            for key in self._keys
            for reduction in self._reductions
        }
        self._of_maps = {  # of those that fuse scores, each map's own
            (key, reduction, name): torch.empty(images, device=self._device)
            for key, scoring in self._keys.items()
            if scoring.fuses_scores
            for reduction in self._reductions
            for name in scoring.blended
        }
        self._samples = {key: torch.empty(pixels, device=self._device) for key in self._keys}
        self._precisions: dict[_Key, np.ndarray] = {}
        self._images_done = self._pixels_done = 0

    def update(self, maps: Mapping[str, Tensor]) -> None:
        """Take the maps of the next images: first all good ones in their order, then all defective ones."""
        count, done = len(next(iter(maps.values()))), self._images_done
        images, defective = slice(done, done + count), done >= self.good_count
        of_defects = slice(done - self.good_count, done - self.good_count + count)
        half = self._defects.half[of_defects] if defective else self._good_half[images]
        half_B = torch.from_numpy(half).to(self._device)
        pixels = self._pixels_of(of_defects) if defective else None
        sampled = slice(self._pixels_done, self._pixels_done + (0 if pixels is None else len(pixels)))
        self._images_done, self._pixels_done = images.stop, sampled.stop
        for sigma, statistics in self._statistics.items():
            smoothed: dict[str, Tensor] = {}
            standardised: dict[tuple[str, str], Tensor] = {}
            for name, calibration in statistics:
                if name not in smoothed:
                    smoothed[name] = smooth(maps[name].float(), sigma, self._roi)
                standardised[name, calibration] = self._standardise(
                    smoothed[name], statistics[name, calibration], half_B
                )
            for key, scoring in self._keys.items():
                if key[0] != sigma:
                    continue
                used = {name: standardised[name, scoring.calibration_of(name)] for name in scoring.blended}
                for at, reduction, name in self._of_maps:
                    if at == key:
                        self._of_maps[key, reduction, name][images] = reduce(used[name], reduction, self._roi)
                map_B1HW = blend(scoring, used)
                for reduction in self._reductions:
                    own = reduction == OWN
                    scored_B1HW = standardised[IMAGE_SCORE, scoring.calibration_of(IMAGE_SCORE)] if own else map_B1HW
                    self._scores[key, reduction][images] = reduce(scored_B1HW, "max" if own else reduction, self._roi)
                if pixels is not None:
                    self._samples[key][sampled] = map_B1HW.flatten()[pixels]

    def image_wins(self) -> np.ndarray:
        """Compute the share of its half's good images that each defective one scores above, a tie half, K×D."""
        scores_KN = torch.stack([self._image_scores(one) for one in self._candidates])
        defects_KD = scores_KN[:, self.good_count :].contiguous()
        wins_KD = np.empty(tuple(defects_KD.shape))
        for half in range(HALVES):
            good_KG = scores_KN[:, np.flatnonzero(self._good_half == half)].sort(dim=1).values
            # How many good images are below each defect, and how many at most as high: their sum is twice the wins.
            twice_KD = sum(torch.searchsorted(good_KG, defects_KD, right=side) for side in (False, True)).cpu().numpy()
            here = self._defects.half == half
            wins_KD[:, here] = twice_KD[:, here] / (2 * good_KG.shape[1])
        return wins_KD

    def image_aurocs(self, wins_KD: np.ndarray) -> np.ndarray:
        """Average `image_wins` over each group in each half: its AUROC, K×2×R, nan where it has no image in a half."""
        aurocs_K2R = np.full((len(wins_KD), *self.counts_2R.shape), np.nan)
        for half, members in enumerate(self._members):
            for row, group in enumerate(members):
                if len(group):
                    aurocs_K2R[:, half, row] = wins_KD[:, group].mean(axis=1)
        return aurocs_K2R

    def _image_scores(self, scoring: Scoring) -> Tensor:
        """Return the scores of all images, N; fused ones in deviations of all good images' scores."""
        key = _map_key(scoring)
        if not scoring.fuses_scores:
            return self._scores[key, scoring.reduction]
        of_maps = {name: self._of_maps[key, scoring.reduction, name] for name in scoring.blended}
        good = {name: score_N[: self.good_count] for name, score_N in of_maps.items()}
        return fuse(scoring, of_maps, {name: torch.stack([s.mean(), s.std() + _TINY]) for name, s in good.items()})

    def pixel_precisions(self, scoring: Scoring) -> np.ndarray:
        """Compute the pixel average precision of a blended map on the images of each group, 2×R, where the maps are.

        It is nan for a group that has no image in a half.
        """
        key = _map_key(scoring)
        if key not in self._precisions:
            padded_P = torch.cat([self._samples[key], self._samples[key].new_full((1,), -torch.inf)])
            found = np.full(self.counts_2R.size, np.nan)
            for rows, at_RL, label_RL, count_RL in self._pixel_rows:
                found[rows] = _average_precisions(padded_P[at_RL], label_RL, count_RL).cpu().numpy()
            self._precisions[key] = found.reshape(self.counts_2R.shape)
        return self._precisions[key]

    def _choose_pixels(self, defects: DefectGroups) -> None:
        """Choose where the average precision looks: all defect pixels, and a fixed random part of the normal ones.

        Nowhere outside of the region of interest, and of an image without a mask nowhere at all.
        """
        self._area = defects.masks[0].size
        inside_P = np.arange(self._area) if self._roi is None else self._roi.places_P.cpu().numpy()
        rng, share = np.random.default_rng(0), min(1.0, _NORMAL_PIXELS / len(inside_P))
        pixels, labels = [], []
        for mask, masked in zip(defects.masks, defects.masked, strict=True):
            defect = np.asarray(mask, dtype=bool).ravel()[inside_P]
            chosen = np.flatnonzero((defect | (rng.random(defect.size) < share)) & masked)
            pixels.append(inside_P[chosen])
            labels.append(defect[chosen])
        self._pixels = pixels
        label_P = np.concatenate(labels)
        self._pixel_count = len(label_P)
        defective_D = np.array([label.sum() for label in labels])
        masked = [members[defects.masked[members]] for half in self._members for members in half]
        share_R = [defective_D[m].mean() / len(inside_P) if len(m) else np.nan for m in masked]
        self.prevalence_2R = np.reshape(share_R, self.counts_2R.shape)
        count_P = np.where(label_P, 1.0, 1 / share)  # how many pixels each one stands for
        image_P = np.repeat(np.arange(len(pixels)), [len(part) for part in pixels])
        places = [np.flatnonzero(np.isin(image_P, members)) for half in self._members for members in half]
        # Groups of about the same size are rows of one table, the short ones filled up with pixels that count nothing.
        alike: dict[int, list[int]] = {}
        for row, group in enumerate(places):
            if len(group):
                alike.setdefault(len(group).bit_length(), []).append(row)
        self._pixel_rows = []
        for rows in alike.values():
            at_RL = np.full((len(rows), max(len(places[row]) for row in rows)), len(label_P))
            for at_L, row in zip(at_RL, rows, strict=True):
                at_L[: len(places[row])] = places[row]
            label_RL, count_RL = (np.append(values_P, 0)[at_RL] for values_P in (label_P, count_P))
            tables = (torch.from_numpy(table).to(self._device) for table in (at_RL, label_RL, count_RL))
            at_RL, label_RL, count_RL = tables
            self._pixel_rows.append((rows, at_RL, label_RL.double(), count_RL.double()))

    def _pixels_of(self, images: slice) -> Tensor:
        """Return the chosen pixels of some defective images, as places in their flattened maps."""
        parts = [place * self._area + pixels for place, pixels in enumerate(self._pixels[images])]
        return torch.from_numpy(np.concatenate(parts)).to(self._device)

    def _fit(self, good_maps: Mapping[str, Tensor], keys: Sequence[_Key]) -> dict[tuple[str, str], list[Statistics]]:
        """Fit what images are standardised by, by map and calibration: those of even and those of odd images."""
        fitted: dict[tuple[str, str], list[Statistics]] = {}
        for name, maps in good_maps.items():
            always = name == IMAGE_SCORE and OWN in self._reductions
            wanted = {self._keys[key].calibration_of(name) for key in keys if always or name in self._keys[key].blended}
            if not wanted:
                continue
            smoothed = smooth(maps.float(), keys[0][0], self._roi)
            if "none" in wanted:
                fitted[name, "none"] = [fit_statistics(smoothed, "none", self._roi)] * HALVES
            if "position" in wanted:
                halves = [smoothed[np.flatnonzero(self._good_half == other)] for other in (1, 0)]
                fitted[name, "position"] = [fit_statistics(half, "position", self._roi) for half in halves]
        return fitted

    @staticmethod
    def _standardise(smoothed_B1HW: Tensor, fitted: Sequence[Statistics], half_B: Tensor) -> Tensor:
        if fitted[0] is fitted[1]:
            return standardise(smoothed_B1HW, fitted[0])
        even, odd = (standardise(smoothed_B1HW, statistics) for statistics in fitted)
        return torch.where(half_B.view(-1, 1, 1, 1) == 0, even, odd)


def _average_precisions(score_RL: Tensor, label_RL: Tensor, count_RL: Tensor) -> Tensor:
    """Return `average_precision` of `msad.models.metrics` for each row: Σ (recall step × precision), shape R, float64.

    `label_RL` is 0 or 1; `count_RL` says how many items each one stands for.
    """
    score_RL, order_RL = score_RL.sort(dim=1, descending=True)
    label_RL, count_RL = label_RL.gather(1, order_RL), count_RL.gather(1, order_RL)
    flagged_RL = count_RL.cumsum(dim=1)
    found_RL = (label_RL * count_RL).cumsum(dim=1)
    last_of_equals_RL = F.pad(score_RL[:, 1:] != score_RL[:, :-1], (0, 1), value=True)
    steps_RL = (
        (found_RL * last_of_equals_RL).cummax(dim=1).values.diff(dim=1, prepend=torch.zeros_like(found_RL[:, :1]))
    )
    return (steps_RL * found_RL / flagged_RL).sum(dim=1) / found_RL[:, -1]


def _map_key(scoring: Scoring) -> _Key:
    """Name the blended map of a scoring: scorings that differ in reduction only share it."""
    each = scoring.calibration
    calibrated = each if isinstance(each, str) else tuple(sorted(each.items()))
    shares = tuple(sorted(scoring.weights.items())), tuple(sorted((scoring.map_weights or {}).items()))
    return scoring.smoothing, scoring.fusion, scoring.blend, calibrated, *shares
