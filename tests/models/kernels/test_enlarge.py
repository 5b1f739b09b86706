from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from msad.models.kernels.enlarge import doubled

SHAPES = [(2, 24, 8, 6), (1, 5, 1, 1), (3, 70, 1, 4), (2, 3, 5, 2)]


def feature(shape, dtype):
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return drawn.to(dtype, memory_format=torch.channels_last).requires_grad_()


def torchs(image):
    return F.interpolate(image, scale_factor=2, mode="bilinear")


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_compiled_doubling_agrees_with_float64(shape, dtype, threads, compiled, set_threads):
    set_threads(threads)
    image = feature(shape, dtype)
    exact = image.detach().double().requires_grad_()
    found, right = doubled(image), torchs(exact)
    assert "msad_enlarge" in type(found.grad_fn).__name__ and found.dtype == dtype
    assert found.shape == right.shape and found.is_contiguous(memory_format=torch.channels_last)
    back = torch.randn(right.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    (gradient,), (wished,) = torch.autograd.grad(found, image, back), torch.autograd.grad(right, exact, back.double())
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-6}
    torch.testing.assert_close(found.double(), right, **tolerance)
    torch.testing.assert_close(gradient.double(), wished, **tolerance)


def test_compiled_doubling_gives_every_place_four_times_its_gradient(compiled):
    image = feature((2, 9, 5, 7), torch.float32)
    (gradient,) = torch.autograd.grad(doubled(image).sum(), image)
    torch.testing.assert_close(gradient, torch.full_like(gradient, 4))


def test_doubling_of_other_features_is_torchs(unsuited):
    image = unsuited(feature((2, 4, 6, 6), torch.float32))
    assert torch.equal(doubled(image), torchs(image))
