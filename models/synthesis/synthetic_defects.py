"""Good images with synthetic defects: what a search is judged on instead of test images.

Shapes: N good images, D defect images, H×W pixels, 3 colours, uint8. Every defect is of one family (see
`defect_families`) and one grade: `faint` is hard to see, `plain` cannot be missed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from msad.models.errors import ModelError
from msad.models.synthesis.defect_families import FAMILY_FUNCTIONS
from msad.models.synthesis.foreground import object_weight

FAMILIES: tuple[str, ...] = tuple(FAMILY_FUNCTIONS)
GRADES: tuple[str, ...] = ("faint", "medium", "plain")

VERSION = 3
"""Part of every identity: raise it when the same seed draws other defects."""

PER_GROUP = 6  # defects of every family and grade
_SMALLEST_SIDE = 32
_VISIBLE = 2  # grey levels: a smaller change is undone, so that the mask is exactly what changed
_ATTEMPTS = 8

# Half the extent of a defect, as a share of the image's side, per grade.
_EXTENT = {"faint": (0.03, 0.05), "medium": (0.05, 0.09), "plain": (0.08, 0.15)}
# Strength per family and grade: grey levels (scratch, fade), opacity (blend, missing), share of the side (warp, blur).
_STRENGTH = {
    "scratch": {"faint": (12, 22), "medium": (28, 45), "plain": (60, 110)},
    "blend": {"faint": (0.5, 0.7), "medium": (0.7, 0.9), "plain": (0.9, 1.0)},
    "warp": {"faint": (0.008, 0.014), "medium": (0.016, 0.028), "plain": (0.035, 0.06)},
    "blur": {"faint": (0.006, 0.009), "medium": (0.01, 0.016), "plain": (0.02, 0.035)},
    "fade": {"faint": (9, 15), "medium": (18, 28), "plain": (38, 60)},
    "missing": {"faint": (0.4, 0.6), "medium": (0.7, 0.9), "plain": (1.0, 1.0)},
}
# The mean change inside the mask, in grey levels, below which another place is tried: a flat spot hides a warp.
_CONTRAST = {"faint": 4.0, "medium": 7.0, "plain": 12.0}


@dataclass(frozen=True)
class SyntheticSet:
    """Defect images made of good ones; every field is an array, so the set can be cached.

    `images` uint8 D×H×W×3; `masks` bool D×H×W, true exactly where the image differs from its source; `family`, `grade`
    int64 D, positions in `FAMILIES` and `GRADES`: what was drawn, which on a product that shows nothing of a family is
    another one; `source` int64 D, position of the good image it was made of.
    """

    images: np.ndarray
    masks: np.ndarray
    family: np.ndarray
    grade: np.ndarray
    source: np.ndarray


def make_synthetic_defects(
    good_NHWC: np.ndarray,
    seed: int,
    per_group: int = PER_GROUP,
    view_size: int | None = None,
    roi_HW: np.ndarray | None = None,
) -> SyntheticSet:
    """Draw `per_group` defects of every family and grade on the good images.

    Parameters
    ----------
    good_NHWC
        uint8, N×H×W×3, held-out good images of one category.
    seed
        The same seed and images give the same set; a larger `per_group` adds to it.
    per_group
        Defects asked for of each family and grade; the sources go round all good images, even positions and odd ones
        by turns, so that none is used much more than another, and either half of them has half of the defects.
    view_size
        Side in pixels that sizes are shares of, if not the images' own: that of a tile, where large images are looked
        at tile by tile, so that a large image gets defects as small as a tile's.
    roi_HW
        bool: outside of it nothing is changed. None: all of the image counts.

    Returns
    -------
    SyntheticSet
        18 × `per_group` images, ordered by the family asked for, then grade. Where a family would be invisible there
        are fewer of it, and more of `fade` (of `scratch` where that is invisible too).

    Raises
    ------
    ModelError
        The images are not uint8 N×H×W×3, there is none, or a side is shorter than 32 pixels.
    """
    good = np.asarray(good_NHWC)
    if good.dtype != np.uint8 or good.ndim != 4 or good.shape[3] != 3 or not len(good):
        raise ModelError(f"synthetic defects need uint8 images N×H×W×3, got {good.dtype} of shape {good.shape}")
    if min(good.shape[1:3]) < _SMALLEST_SIDE or per_group < 1:
        raise ModelError(
            f"synthetic defects need images of at least {_SMALLEST_SIDE}×{_SMALLEST_SIDE} pixels and per_group >= 1, "
            f"got {good.shape[1]}×{good.shape[2]} and {per_group}"
        )
    side = min(good.shape[1:3]) if view_size is None else min(view_size, *good.shape[1:3])
    roi_HW = np.ones(good.shape[1:3], bool) if roi_HW is None else roi_HW
    weights = object_weight(good) * roi_HW
    weights[weights.max(axis=(1, 2)) == 0] = roi_HW  # the product is not seen in the region
    grey = bool(np.abs(good.astype(np.int16) - good[..., :1]).max(axis=3).mean() < 2)
    groups = [(family, grade) for family in range(len(FAMILIES)) for grade in range(len(GRADES))]
    count = len(groups) * per_group
    images, masks = np.empty((count, *good.shape[1:]), np.uint8), np.empty((count, *good.shape[1:3]), bool)
    kinds: list[tuple[int, int, int]] = []
    for group, (family, grade) in enumerate(groups):
        order = np.random.default_rng([seed, group]).permutation(len(good))
        halves = [half for half in (order[order % 2 == 0], order[order % 2 == 1]) if len(half)]
        for position in range(per_group):
            rng = np.random.default_rng([seed, group, position])
            turn, place = position + group, position // len(halves)
            half = halves[turn % len(halves)]
            source = int(half[place % len(half)])
            images[len(kinds)], masks[len(kinds)], drawn = _defect(
                good, weights, roi_HW, source, FAMILIES[family], GRADES[grade], side, grey, rng
            )
            kinds.append((FAMILIES.index(drawn), grade, source))
    family, grade, source = np.array(kinds, dtype=np.int64).T.copy()
    return SyntheticSet(images, masks, family, grade, source)


def _defect(
    good: np.ndarray,
    weights: np.ndarray,
    roi_HW: np.ndarray,
    source: int,
    family: str,
    grade: str,
    side: int,
    grey: bool,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, str]:
    """Try a few places and keep the first defect of enough contrast, else the strongest; never an unchanged image.

    Returns image, mask and the family that was drawn.
    """
    best, most = None, 0.0
    for attempt in range(_ATTEMPTS):
        image, mask = _attempt(good, weights, roi_HW, source, family, grade, side, grey, attempt, rng)
        change = np.abs(image.astype(np.float32) - good[source]).max(axis=2)
        # The square root keeps a large faint change comparable with a small strong one.
        evidence = float(change.sum() / max(mask.sum(), 1) ** 0.5)
        if evidence > most:
            best, most = (image, mask), evidence
        if mask.sum() >= 6 and change[mask].mean() >= _CONTRAST[grade]:
            return image, mask, family
    # Nothing to blend, warp or blur on an even picture: only a change of shade can be seen there.
    if best is None or (best[1].sum() < 6 and family != "fade"):
        other = "scratch" if family == "fade" else "fade"
        return _defect(good, weights, roi_HW, source, other, grade, side, grey, rng)
    return *best, family


def _attempt(
    good: np.ndarray,
    weights: np.ndarray,
    roi_HW: np.ndarray,
    source: int,
    family: str,
    grade: str,
    side: int,
    grey: bool,
    attempt: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    extent = max(2.5, side * rng.uniform(*_EXTENT[grade])) * (1.6 if family == "scratch" else 1.0)
    strength = rng.uniform(*_STRENGTH[family][grade])
    if family in ("warp", "blur"):
        # A smooth surface shows neither at first: every further attempt does more, and the last ones roughen it.
        strength = max(0.7, strength * side) * 1.2**attempt
        strength = -strength if family == "blur" and 2 * attempt >= _ATTEMPTS else strength
    reach = min(int(np.ceil(1.6 * extent)) + 2, (min(good.shape[1:3]) - 1) // 2)
    other = int(rng.integers(len(good)))
    rows, columns = _window(weights[source], reach, rng)
    patch = _cut(good[source], rows, columns)
    donor = _cut(good[other], *_window(weights[other], reach, rng))
    changed = FAMILY_FUNCTIONS[family](patch.astype(np.float32), donor.astype(np.float32), extent, strength, grey, rng)
    changed = np.clip(np.rint(changed), 0, 255).astype(np.uint8)
    touched = np.abs(changed.astype(np.int16) - patch).max(axis=2) >= _VISIBLE
    touched &= _cut(roi_HW, rows, columns)
    for places, side, axis in ((rows, len(roi_HW), 1), (columns, roi_HW.shape[1], 0)):
        touched &= np.expand_dims((places >= 0) & (places < side), axis)
    image, mask = good[source].copy(), np.zeros(good.shape[1:3], dtype=bool)
    down, right = np.nonzero(touched)
    image[rows[down], columns[right]] = changed[down, right]
    mask[rows[down], columns[right]] = True
    return image, mask


def _window(weight: np.ndarray, reach: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns of a square of side 2 × reach + 1 whose centre lies on the product.

    It lies in the image unless all of the product is nearer to the image's border than its centre could be.
    """
    inner = weight[reach : weight.shape[0] - reach, reach : weight.shape[1] - reach]
    total = np.cumsum(inner, dtype=np.float64)
    if total[-1] == 0:
        places = np.argwhere(weight)
        y, x = places[int(rng.integers(len(places)))]
    else:
        flat = int(np.searchsorted(total, rng.random() * total[-1], side="right"))
        y, x = (place + reach for place in divmod(min(flat, inner.size - 1), inner.shape[1]))
    around = np.arange(-reach, reach + 1)
    return y + around, x + around


def _cut(image: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return rows and columns of an image, its border repeated beyond it."""
    high, wide = image.shape[:2]
    return image[rows.clip(0, high - 1)[:, None], columns.clip(0, wide - 1)]
