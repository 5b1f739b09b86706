"""Synthetic and known defects in groups and halves, and what each counts."""

from __future__ import annotations

import numpy as np
import pytest

from msad.models.defects import DefectGroups, KnownDefects, known_share
from msad.models.errors import ModelError
from msad.models.synthesis.synthetic_defects import SyntheticSet


def synthetic(count=8):
    family, grade = np.arange(count) % 2, np.zeros(count, int)
    return SyntheticSet(np.empty((count, 0)), np.zeros((count, 4, 4), bool), family, grade, np.arange(count) // 2)


def known(types, masked=None):
    count = len(types)
    masks = np.ones((count, 4, 4), bool)
    masked = np.ones(count, bool) if masked is None else np.array(masked)
    return KnownDefects(np.zeros((count, 4, 4, 3), np.uint8), masks, masked, tuple(types))


def test_groups_of_synthetic_defects_alone_weigh_one_in_each_half():
    groups = DefectGroups.of(synthetic())
    assert groups.names == ["scratch/faint", "blend/faint"] and len(groups) == 8
    assert groups.weights_2R == pytest.approx(np.full((2, 2), 0.5))
    assert groups.members(0, 1).tolist() == [1, 5]  # made of the good images 0 and 2


def test_known_defects_count_their_share_by_their_number_and_go_by_turns_into_both_halves():
    groups = DefectGroups.of(synthetic(), known(["dent", "scratch", "scratch"]))
    assert groups.names[2:] == ["known/dent", "known/scratch"]
    assert groups.group.tolist()[8:] == [2, 3, 3] and groups.half.tolist()[8:] == [0, 1, 0]
    share = known_share(3)
    assert groups.weights_2R.sum(axis=1) == pytest.approx([1, 1])
    assert groups.weights_2R[:, 2:] == pytest.approx(np.array([[share / 2, share / 2], [0, share]]))
    assert groups.weights_2R[:, :2] == pytest.approx(np.full((2, 2), (1 - share) / 2))


def test_one_known_defect_counts_in_its_half_alone():
    groups = DefectGroups.of(synthetic(), known(["dent"]))
    assert groups.weights_2R[:, 2] == pytest.approx([known_share(1), 0])
    assert groups.weights_2R.sum(axis=1) == pytest.approx([1, 1])


def test_share_grows_with_the_number_and_never_silences_the_synthetic_ones():
    shares = [known_share(count) for count in (0, 1, 5, 20, 1000)]
    assert shares[0] == 0 and shares == sorted(shares) and shares[-1] < 1


def test_known_defects_of_unequal_parts_are_refused():
    with pytest.raises(ModelError, match="as many masks and types as images"):
        KnownDefects(np.zeros((2, 4, 4, 3), np.uint8), np.ones((2, 4, 5), bool), np.ones(2, bool), ("a", "b"))
    with pytest.raises(ModelError, match="at least one"):
        known([])
