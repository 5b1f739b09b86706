from __future__ import annotations

import pytest
import torch
from sklearn.covariance import LedoitWolf

from msad.models.image_gaussian import ImageGaussian, ledoit_wolf


@pytest.fixture(params=[30, 400], ids=["fewer images than channels", "more"])
def good(request):
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(50, 50, generator=generator)
    return torch.randn(request.param, 50, generator=generator) @ mix + 5


def test_distances_are_those_of_scikit_learn(good):
    gaussian = ImageGaussian(50)
    gaussian.learn(good)
    reference = LedoitWolf().fit(good.double().numpy())
    others = good + torch.linspace(0, 9, len(good)).unsqueeze(1)
    wanted = torch.from_numpy(reference.mahalanobis(others.double().numpy()) / 50).sqrt().float()
    torch.testing.assert_close(gaussian(others), wanted, atol=1e-3, rtol=1e-3)


def test_covariance_is_that_of_scikit_learn(good):
    centred = good.double() - good.double().mean(dim=0)
    reference = torch.from_numpy(LedoitWolf().fit(good.double().numpy()).covariance_)
    torch.testing.assert_close(ledoit_wolf(centred), reference, atol=1e-6, rtol=1e-6)


def test_distances_of_images_that_are_all_alike_are_finite():
    gaussian = ImageGaussian(4)
    gaussian.learn(torch.ones(5, 4))
    assert torch.isfinite(gaussian(torch.tensor([[1.0, 1, 1, 1], [2, 1, 1, 1]]))).all()
