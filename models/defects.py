"""What good images are told from: synthetic defects, and known ones where there are any; in groups, and in two halves.

Half of the good images, with the synthetic ones made of them and every other known defect, chooses; the other half says
what the choice is worth (see `msad.models.scoring`).

Shapes: D defect images, K known ones among them, H×W pixels; R groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from msad.models.errors import ModelError
from msad.models.synthesis.synthetic_defects import FAMILIES, GRADES, SyntheticSet

HALVES = 2
KNOWN = "known"
WORTH = 10
"""So many known defects count as much as all synthetic ones together: few of them say little."""


@dataclass(frozen=True)
class KnownDefects:
    """Real defective images that help to choose and are never trained on.

    Parameters
    ----------
    images, masks
        uint8 K×H×W×3, and where they are defective, bool K×H×W.
    masked
        bool K: whether the mask is known; all False in the mask else.
    types
        Each one's type of defect.

    Raises
    ------
    ModelError
        There is none, or the parts differ in number or size.
    """

    images: np.ndarray
    masks: np.ndarray
    masked: np.ndarray
    types: tuple[str, ...]

    def __post_init__(self) -> None:
        shapes = self.images.shape[:3], self.masks.shape, (*self.masked.shape, *self.masks.shape[1:])
        if len({*shapes}) != 1 or len(self.types) != len(self.masks) or not len(self.masks):
            raise ModelError(f"known defects need as many masks and types as images, at least one, got {shapes}")

    def __len__(self) -> int:
        return len(self.types)


@dataclass(frozen=True)
class DefectGroups:
    """Defect images as they are judged.

    Parameters
    ----------
    names
        "family/grade" of each group of synthetic defects, then "known/type" of known ones.
    group, half
        int64 D: each image's group, and the half of the good images that it is compared with.
    masks
        D arrays H×W.
    masked, known
        bool D: whether the mask is known, and whether the defect is a known one.
    weights_2R
        What each group counts in each half; a half's sum to 1.
    """

    names: list[str]
    group: np.ndarray
    half: np.ndarray
    masks: Sequence[np.ndarray]
    masked: np.ndarray
    known: np.ndarray
    weights_2R: np.ndarray

    @classmethod
    def of(cls, synthetic: SyntheticSet, known: KnownDefects | None = None) -> DefectGroups:
        """Group synthetic defects by family and grade, and known ones by type, by turns in one half and the other."""
        drawn = list(zip(synthetic.family.tolist(), synthetic.grade.tolist(), strict=True))
        groups = sorted(set(drawn))
        names = [f"{FAMILIES[family]}/{GRADES[grade]}" for family, grade in groups]
        group, half = [groups.index(one) for one in drawn], synthetic.source % HALVES
        weights_2R = _weights(counts(np.array(group), half, len(groups)), len(drawn))
        masks, masked = [*synthetic.masks], np.ones(len(drawn), bool)
        if known is not None:
            types = sorted(set(known.types))
            names += [f"{KNOWN}/{name}" for name in types]
            of_known, half_of_known = (
                np.array([types.index(one) for one in known.types]),
                np.arange(len(known)) % HALVES,
            )
            counts_2R = counts(of_known, half_of_known, len(types))
            in_half_21 = counts_2R.sum(axis=1, keepdims=True)
            share_21 = np.where(in_half_21 > 0, known_share(len(known)), 0.0)
            of_known_2R = counts_2R / np.maximum(in_half_21, 1)
            weights_2R = np.concatenate([(1 - share_21) * weights_2R, share_21 * of_known_2R], axis=1)
            group, half = [*group, *(of_known + len(groups))], np.concatenate([half, half_of_known])
            masks, masked = [*masks, *known.masks], np.concatenate([masked, known.masked])
        is_known = np.arange(len(group)) >= len(drawn)
        return cls(names, np.array(group), half, masks, masked, is_known, weights_2R)

    def __len__(self) -> int:
        return len(self.group)

    @property
    def known_groups(self) -> np.ndarray:
        """Which groups are of known defects, bool R."""
        return np.array([name.startswith(f"{KNOWN}/") for name in self.names])

    def members(self, half: int, group: int) -> np.ndarray:
        """Return the positions of a group's images in a half."""
        return np.flatnonzero((self.group == group) & (self.half == half))


def known_share(count: int) -> float:
    """Return what so many known defects count in a validation score; the synthetic ones count the rest."""
    return count / (count + WORTH)


def counts(group: np.ndarray, half: np.ndarray, groups: int) -> np.ndarray:
    """Return how many images each group has in each half, 2×R."""
    return np.stack([np.bincount(group[half == one], minlength=groups) for one in range(HALVES)])


def _weights(counts_2R: np.ndarray, images: int) -> np.ndarray:
    """Return what each group of synthetic defects counts in its half.

    Groups that hold as many images as each was asked for count alike. Where a family could not be seen on a product and
    others were drawn in its place (`SyntheticSet.family` says what was drawn), what is left of it counts less, and what
    it became counts once, however many families became it.
    """
    asked = images / (HALVES * len(FAMILIES) * len(GRADES))
    shares_2R = np.minimum(counts_2R / asked, 1.0)
    return shares_2R / shares_2R.sum(axis=1, keepdims=True)
