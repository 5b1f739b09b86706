"""The map of structural similarity and its gradient in C, against torch's operators."""

from __future__ import annotations

import pytest
import torch

from msad.models import similarity
from msad.models.similarity import ssim_map


def by_kernel(map_BCHW):
    return map_BCHW.grad_fn is not None and "msad_ssim" in type(map_BCHW.grad_fn).__name__


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("size", [(6, 6), (17, 40), (64, 33), (131, 96)])
def test_compiled_map_and_gradient_agree_with_torch(size, threads, compiled, set_threads):
    set_threads(threads)
    generator = torch.Generator().manual_seed(0)
    first, second, back = (torch.rand(2, 3, *size, generator=generator) for _ in range(3))
    first.requires_grad_()
    found, wanted = ssim_map(first, second), similarity._ssim(first, second)
    assert by_kernel(found) and not by_kernel(wanted)
    gradient, right = (torch.autograd.grad(made, first, back)[0] for made in (found, wanted))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(gradient, right, rtol=1e-4, atol=1e-5)


def test_compiled_map_takes_images_of_every_layout(compiled):
    planes = torch.rand(2, 3, 16, 12).requires_grad_()
    interleaved = planes.detach().to(memory_format=torch.channels_last).requires_grad_()
    second, back = torch.rand(2, 2, 3, 16, 12).unbind()
    maps, gradients = [], []
    for first in (planes, interleaved):
        maps.append(ssim_map(first, second))
        gradients += torch.autograd.grad(maps[-1], first, back)
    assert all(map(by_kernel, maps)) and torch.equal(*maps) and torch.equal(*gradients)


def test_compiled_map_leaves_scores_small_images_and_the_second_images_gradient_to_torch(compiled):
    first, second = torch.rand(2, 1, 3, 16, 16).unbind()
    moving = second.clone().requires_grad_()
    for one, other in ((first, moving), (moving, moving), (moving[..., :5, :], first[..., :5, :])):
        assert not by_kernel(ssim_map(one, other))
    with torch.no_grad():
        assert torch.equal(ssim_map(moving, first), ssim_map(second, first))
