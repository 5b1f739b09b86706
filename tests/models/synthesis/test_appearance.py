"""What is found once on good images comes back from a file as it was."""

from __future__ import annotations

import numpy as np
import pytest

from msad.data_io.cache import cached_arrays
from msad.models.synthesis.appearance import Appearance, appearance_of
from msad.models.synthesis.augmentation import AugmentationConfig, Augmenter


@pytest.mark.parametrize("name", ["part at any angle", "vertical stripes"])
def test_appearance_survives_a_file_without_another_look_at_the_images(name, drawn, tmp_path):
    found = Appearance(drawn(name))
    kept = cached_arrays("appearance", found.to_arrays, tmp_path)
    again = Appearance.from_arrays(np.empty(0), kept)
    assert again.symmetries == found.symmetries and again.symmetries.ratios == found.symmetries.ratios
    assert (again.background is None) == (found.background is None) == (name == "vertical stripes")
    if found.background:
        assert np.array_equal(again.background.colour, found.background.colour)
        assert again.background.tolerance == found.background.tolerance
    assert Augmenter(AugmentationConfig(), again).kind == Augmenter(AugmentationConfig(), drawn(name)).kind


def test_appearance_of_few_images_has_no_ratios_and_survives_a_file(drawn, tmp_path):
    few = drawn("isotropic texture")[:7]
    kept = cached_arrays("appearance", Appearance(few).to_arrays, tmp_path)
    again = Appearance.from_arrays(few, kept)
    assert again.symmetries.ratios == {} and not again.symmetries.shift


def test_appearance_of_an_appearance_is_itself(drawn):
    given = Appearance(drawn("part upright"))
    assert appearance_of(given) is given
