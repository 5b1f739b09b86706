from __future__ import annotations

import pytest
import torch

from msad.models.kernels import gate_gpu
from msad.models.kernels.gate import _Gated, gated


def features(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    drawn = (torch.randn(shape, generator=generator) * scale for scale in (1, 1, 4))
    return [value.to(dtype, memory_format=torch.channels_last).requires_grad_() for value in drawn]


SHAPES = [(2, 32, 8, 8), (3, 5, 3, 7), (1, 1, 1, 1)]


def compare(shape, dtype, run, device="cpu"):
    """Check the result and the gradients of `run` against float64."""
    given = [feature.detach().to(device).requires_grad_() for feature in features(shape, dtype)]
    exact = [feature.detach().double().cpu().requires_grad_() for feature in given]
    found, wanted = run(*given), gated(*exact)
    assert type(found.grad_fn).__name__ == "_GatedBackward" and found.dtype == dtype
    back = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-2}
    torch.testing.assert_close(found.double().cpu(), wanted, **tolerance)
    gradients = torch.autograd.grad(found, given, back.to(device))
    for gradient, exact_gradient in zip(gradients, torch.autograd.grad(wanted, exact, back.double()), strict=True):
        torch.testing.assert_close(gradient.double().cpu(), exact_gradient, **tolerance)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_compiled_gate_agrees_with_float64(shape, dtype, threads, compiled, set_threads):
    set_threads(threads)
    compare(shape, dtype, gated)


def agree_in_triton():
    for shape in SHAPES:
        compare(shape, torch.float16, lambda *given: _Gated.apply(gate_gpu.run, *given))


def test_gate_in_triton_agrees_with_float64(interpreted):
    interpreted(agree_in_triton)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [*SHAPES, (8, 64, 128, 128)])
def test_gate_on_a_gpu_agrees_with_float64(shape, dtype):
    compare(shape, dtype, gated, "cuda")


def test_compiled_gate_far_open_far_closed_and_not_a_number(compiled):
    decoder, skip, gate = (torch.full((1, 40, 1, 1), value).requires_grad_() for value in (1.0, 3.0, 0.0))
    with torch.no_grad():
        gate[0, :5, 0, 0] = torch.tensor([-torch.inf, -1e4, 1e4, torch.inf, torch.nan])
    made = gated(decoder, skip, gate)
    assert made.flatten()[:4].tolist() == [1, 1, 3, 3] and made[0, 4].isnan() and (made[0, 5:] == 2).all()
    made[0, :4].sum().backward()
    assert gate.grad[0, :4].abs().max() < 1e-30
    assert skip.grad[0, :4].flatten().tolist() == pytest.approx([0, 0, 1, 1], abs=1e-30)


def test_gate_of_other_features_is_torchs(unsuited):
    decoder, skip, gate = map(unsuited, features((2, 4, 6, 6), torch.float32))
    assert torch.equal(gated(decoder, skip, gate), torch.lerp(decoder, skip, torch.sigmoid(gate)))


def test_gate_of_features_of_several_shapes_is_torchs(compiled):
    decoder, skip, gate = features((2, 4, 6, 6), torch.float32)
    one = skip[:1]
    assert torch.equal(gated(decoder, one, gate), torch.lerp(decoder, one, torch.sigmoid(gate)))
