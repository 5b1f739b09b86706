from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from msad.models.kernels.feature_distance import cosine_distance, feature_distances

SHAPES = [(2, 24, 8, 6), (3, 5, 3, 7), (1, 1, 1, 1), (1, 112, 2, 2)]


def pair(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    made, wanted = (torch.randn(shape, generator=generator) for _ in range(2))
    made, wanted = made.to(dtype, memory_format=torch.channels_last), wanted.to(memory_format=torch.channels_last)
    return made.requires_grad_(), wanted


def torchs(made, wanted):
    """Both distances by torch's own functions, which know of no rows, passes or kernels."""
    return (1 - F.cosine_similarity(made, wanted, dim=1)).mean(), F.mse_loss(made, wanted)


def kind(distance):
    return "torch's" if "msad" not in type(distance.grad_fn).__name__ else "msad's"


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_compiled_distances_and_gradients_agree_with_float64(shape, dtype, threads, compiled, set_threads):
    set_threads(threads)
    made, wanted = pair(shape, dtype)
    exact = made.detach().double().requires_grad_()
    found, right = feature_distances(made, wanted), torchs(exact, wanted.double())
    tolerance = 1e-5 if dtype == torch.float32 else 4e-3
    for one, other in zip(found, right, strict=True):
        assert kind(one) == "msad's"
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-6)
    for cosine, squared in ((1, 1), (3, 0), (0, 0.5)):
        (gradient,) = torch.autograd.grad(cosine * found[0] + squared * found[1], made, retain_graph=True)
        (wished,) = torch.autograd.grad(cosine * right[0] + squared * right[1], exact, retain_graph=True)
        assert gradient.dtype == dtype
        near = tolerance * wished.abs().max().item() + 1e-6
        torch.testing.assert_close(gradient.double(), wished, rtol=tolerance, atol=near)


def test_compiled_distances_are_the_same_whatever_the_threads(compiled, set_threads):
    made, wanted = pair((3, 40, 16, 16), torch.bfloat16)
    found = []
    for threads in (1, 2, 5):
        set_threads(threads)
        distances = feature_distances(made, wanted)
        found.append([*distances, *torch.autograd.grad(sum(distances), made)])
    assert all(torch.equal(one, first) for other in found[1:] for one, first in zip(other, found[0], strict=True))


def test_compiled_distances_of_a_feature_without_a_direction_and_of_what_is_no_number(compiled):
    made, wanted = pair((1, 8, 2, 2), torch.float32)
    with torch.no_grad():
        made[0, :, 0, 0] = 0
    cosine, _ = feature_distances(made, wanted)
    torch.testing.assert_close(cosine, torchs(made, wanted)[0])
    (gradient,) = torch.autograd.grad(cosine, made)
    assert gradient.isfinite().all()
    for spoilt in (made, wanted):
        with torch.no_grad():
            spoilt[0, 3, 1, 1] = torch.nan
        assert all(distance.isnan() for distance in feature_distances(made, wanted))
        with torch.no_grad():
            spoilt[0, 3, 1, 1] = 1


def test_distances_of_other_features_are_torchs(unsuited):
    made, wanted = pair((2, 4, 6, 6), torch.float32)
    found = feature_distances(unsuited(made), unsuited(wanted).float())
    for one, other in zip(found, torchs(unsuited(made).float(), unsuited(wanted).float()), strict=True):
        torch.testing.assert_close(one, other)


def test_distances_whose_goal_wants_a_gradient_are_torchs(compiled):
    made, wanted = pair((2, 4, 6, 6), torch.float32)
    wanted.requires_grad_()
    assert all(kind(distance) == "torch's" for distance in feature_distances(made, wanted))
    assert torch.autograd.grad(sum(feature_distances(made, wanted)), wanted)[0].abs().sum() > 0


def test_cosine_distance_is_torchs_also_where_a_feature_is_zero():
    generator = torch.Generator().manual_seed(0)
    made, wanted = (torch.randn(2, 5, 4, 3, generator=generator) for _ in range(2))
    made[0, :, 1, 1] = 0
    made.requires_grad_()
    back = torch.randn(2, 1, 4, 3, generator=generator)
    distances = cosine_distance(made, wanted), 1 - F.cosine_similarity(made, wanted, dim=1).unsqueeze(1)
    torch.testing.assert_close(*distances)
    found, right = (torch.autograd.grad(distance, made, back)[0] for distance in distances)
    found[0, :, 1, 1] = right[0, :, 1, 1] = 0  # there is no direction to go in
    torch.testing.assert_close(found, right)
