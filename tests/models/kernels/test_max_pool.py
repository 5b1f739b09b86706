from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from msad.models.kernels import max_pool_gpu
from msad.models.kernels.max_pool import _MaxPool, max_pool


def feature(shape, dtype, *, equal=False):
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, 3, shape, generator=generator) if equal else torch.randn(shape, generator=generator)
    return drawn.to(dtype, memory_format=torch.channels_last).requires_grad_()


PLACES = [(0, 0), (0, 1), (1, 0), (1, 1)]
SHAPES = [(2, 32, 8, 8), (3, 5, 2, 6), (1, 70, 4, 2)]


def compare(image, run):
    """Check that result and gradient of `run` are torch's to the last bit."""
    found, wanted = run(image), F.max_pool2d(image, 2)
    assert type(found.grad_fn).__name__ == "_MaxPoolBackward"
    assert torch.equal(found, wanted) and found.is_contiguous(memory_format=torch.channels_last)
    back = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1)).to(wanted)
    (found_gradient,), (wanted_gradient,) = (torch.autograd.grad(made, image, back) for made in (found, wanted))
    assert torch.equal(found_gradient, wanted_gradient)


def compare_what_is_no_number(at, image, run):
    """Check that a value that is no number, at one of four places, is the maximum and gets the gradient."""
    with torch.no_grad():
        image[:, :, *at] = torch.nan
    found = run(image)
    assert found[..., 0, 0].isnan().all() and found.isnan().sum() == image.shape[1]
    (gradient,) = torch.autograd.grad(found[..., 0, 0].sum(), image)
    assert (gradient[:, :, *at] == 1).all() and gradient.sum() == image.shape[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_compiled_max_pool_is_torchs(shape, equal, dtype, compiled):
    compare(feature(shape, dtype, equal=equal), max_pool)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("at", PLACES)
def test_compiled_max_pool_passes_on_what_is_no_number(at, dtype, compiled):
    compare_what_is_no_number(at, feature((1, 20, 4, 4), dtype), max_pool)


def in_triton(feature_BCHW):
    return _MaxPool.apply(max_pool_gpu.run, feature_BCHW)


def agree_in_triton():
    for shape in SHAPES:
        for equal in (False, True):
            compare(feature(shape, torch.float16, equal=equal), in_triton)
    for at in PLACES:
        compare_what_is_no_number(at, feature((1, 20, 4, 4), torch.float16), in_triton)


def test_max_pool_in_triton_is_torchs(interpreted):
    interpreted(agree_in_triton)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [*SHAPES, (8, 32, 256, 256)])
def test_max_pool_on_a_gpu_is_torchs(shape, dtype):
    for equal in (False, True):
        compare(feature(shape, dtype, equal=equal).detach().cuda().requires_grad_(), max_pool)
    for at in PLACES:
        small = feature((1, 20, 4, 4), dtype).detach().cuda().requires_grad_()
        compare_what_is_no_number(at, small, max_pool)


def test_max_pool_of_other_features_is_torchs(unsuited):
    image = unsuited(feature((2, 4, 6, 6), torch.float32))
    assert torch.equal(max_pool(image), F.max_pool2d(image, 2))
