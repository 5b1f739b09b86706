from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from msad.models.smoothing import smooth


@pytest.mark.parametrize("sigma", [0.5, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("size", [(32, 32), (17, 45)])
def test_smooth_equals_scipy_gaussian_with_a_repeated_border(sigma, size):
    map_B1HW = torch.rand(3, 1, *size, generator=torch.Generator().manual_seed(0))
    radius = max(1, int(np.ceil(3 * sigma)))
    expected = ndimage.gaussian_filter(map_B1HW.numpy(), sigma, axes=(2, 3), mode="nearest", radius=radius)
    np.testing.assert_allclose(smooth(map_B1HW, sigma).numpy(), expected, atol=1e-5)


def test_smooth_is_the_same_under_autocast_and_keeps_even_maps_even():
    map_B1HW = torch.rand(2, 1, 32, 32)
    outside = smooth(map_B1HW, 2.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(smooth(map_B1HW, 2.0), outside)
    torch.testing.assert_close(smooth(torch.ones(1, 1, 20, 20), 3.0), torch.ones(1, 1, 20, 20))


def test_smooth_of_a_large_map_equals_that_of_a_small_one(monkeypatch):
    map_B1HW = torch.rand(2, 1, 70, 90, generator=torch.Generator().manual_seed(0))
    by_matrix = {sigma: smooth(map_B1HW, sigma) for sigma in (0.5, 3.0, 20.0)}
    monkeypatch.setattr("msad.models.smoothing._LARGE", 64)
    for sigma, expected in by_matrix.items():
        torch.testing.assert_close(smooth(map_B1HW, sigma), expected, atol=1e-5, rtol=1e-5)
