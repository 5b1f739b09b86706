from __future__ import annotations

import numpy as np
import pytest

from msad.data_io.errors import DataError
from msad.data_io.photographs import TEXTURES, cut_texture, load_photograph, load_textures


def test_load_textures_are_many_differing_and_always_the_same():
    textures = load_textures(64)
    assert textures.shape == (4 * len(TEXTURES), 64, 64, 3) and textures.dtype == np.uint8
    assert np.array_equal(textures, load_textures(64))
    assert len({texture.tobytes() for texture in textures}) == len(textures)
    # A flat texture would be no texture.
    assert np.all(textures.astype(float).std(axis=(1, 2, 3)) > 8)


def test_cut_texture_stays_inside_the_photograph():
    bright = np.full((200, 300, 3), 255, np.uint8)
    for seed in range(50):
        # Outside of a photograph an affine transform gives black.
        assert cut_texture(bright, 40, np.random.default_rng(seed)).min() == 1.0


def test_load_photograph_unknown_is_a_data_error():
    with pytest.raises(DataError, match=r"nothing\.png"):
        load_photograph("nothing.png")
