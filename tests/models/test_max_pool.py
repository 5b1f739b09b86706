from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from models.max_pool import max_pool


def feature(shape, dtype, *, equal=False):
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, 3, shape, generator=generator) if equal else torch.randn(shape, generator=generator)
    return drawn.to(dtype, memory_format=torch.channels_last).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("shape", [(2, 32, 8, 8), (3, 5, 2, 6), (1, 70, 4, 2)])
def test_compiled_max_pool_is_torchs(shape, equal, dtype, compiled):
    image = feature(shape, dtype, equal=equal)
    found, wanted = max_pool(image), F.max_pool2d(image, 2)
    assert type(found.grad_fn).__name__ == "_MaxPoolBackward"
    assert torch.equal(found, wanted) and found.is_contiguous(memory_format=torch.channels_last)
    back = torch.randn_like(wanted)
    (found_gradient,), (wanted_gradient,) = (torch.autograd.grad(made, image, back) for made in (found, wanted))
    assert torch.equal(found_gradient, wanted_gradient)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("at", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_compiled_max_pool_passes_on_what_is_no_number(at, dtype, compiled):
    image = feature((1, 20, 4, 4), dtype)
    with torch.no_grad():
        image[:, :, *at] = torch.nan
    found = max_pool(image)
    assert found[..., 0, 0].isnan().all() and found.isnan().sum() == 20
    found[..., 0, 0].sum().backward()
    assert (image.grad[:, :, *at] == 1).all() and image.grad.sum() == 20


def test_max_pool_of_other_features_is_torchs(unsuited):
    image = unsuited(feature((2, 4, 6, 6), torch.float32))
    assert torch.equal(max_pool(image), F.max_pool2d(image, 2))
