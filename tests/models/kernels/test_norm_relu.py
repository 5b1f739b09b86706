"""The fused layer against torch's own: on a GPU, and its kernels in Triton's interpreter where there is none."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from msad.models.kernels import kernel_check, native, norm_relu, norm_relu_gpu
from msad.models.kernels.norm_relu import NormReLU

# Channels that fill a tile, that do not, and that need several, of every width; places that end amid a tile.
SHAPES = [(2, 32, 16, 16), (3, 5, 7, 9), (2, 96, 33, 31), (1, 200, 8, 8), (1, 123, 9, 8)]


def compare(shape, device, dtype, run):
    """Check output, gradients and running statistics of `run(layer, feature)` against float64."""
    generator = torch.Generator().manual_seed(0)
    layer = NormReLU(shape[1])
    with torch.no_grad():
        layer.norm.weight.copy_(torch.rand(shape[1], generator=generator) + 0.5)
        layer.norm.bias.copy_(torch.rand(shape[1], generator=generator) - 0.5)
    exact, layer = copy.deepcopy(layer).double(), layer.to(device)
    mean_1C11 = 20 * torch.randn(1, shape[1], 1, 1, generator=generator)  # far from 0, where digits could get lost
    feature = (mean_1C11 + torch.randn(shape, generator=generator)).to(device, dtype, memory_format=torch.channels_last)
    back = torch.randn(shape, generator=generator).to(device, dtype, memory_format=torch.channels_last)
    feature.requires_grad_()
    made = run(layer, feature)
    made.backward(back)
    wide = feature.detach().cpu().double().requires_grad_()
    wanted = torch.relu(exact.norm(wide))
    wanted.backward(back.cpu().double())
    digits = 1e-2 if dtype == torch.bfloat16 else 2e-3 if dtype == torch.float16 else 1e-4

    def close(found, right):
        assert (found.detach().cpu().double() - right).norm() <= digits * right.norm()

    close(made, wanted.detach())
    close(feature.grad, wide.grad)
    for name in ("weight", "bias"):
        close(getattr(layer.norm, name).grad, getattr(exact.norm, name).grad)
    for name in ("running_mean", "running_var"):
        assert torch.allclose(getattr(layer.norm, name).cpu().double(), getattr(exact.norm, name), rtol=1e-4, atol=1e-4)
    assert made.dtype == dtype and made.is_contiguous(memory_format=torch.channels_last)


def in_triton(layer, feature):
    norm = layer.norm
    running = norm.running_mean, norm.running_var
    return norm_relu._Fused.apply(norm_relu_gpu, feature, norm.weight, norm.bias, *running, norm.momentum, norm.eps)


@pytest.mark.parametrize("shape", SHAPES)
def test_layer_on_a_cpu_is_batch_normalisation_and_relu(shape):
    compare(shape, "cpu", torch.float32, lambda layer, feature: layer(feature))


@pytest.fixture
def calls(compiled, monkeypatch):
    """The names of the kernels in C, as they are called."""
    calls = []
    call = native.call
    monkeypatch.setattr(kernel_check, "agrees", lambda *_: True)  # it calls them too
    monkeypatch.setattr(native, "call", lambda library, name, *given: calls.append(name) or call(library, name, *given))
    return calls


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [*SHAPES, (1, 3, 3, 2)])
def test_compiled_kernels_agree_with_float64(shape, dtype, threads, calls, set_threads):
    set_threads(threads)
    compare(shape, "cpu", dtype, lambda layer, feature: layer(feature))
    assert calls == ["forward", "backward"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_compiled_kernels_pass_on_what_is_not_finite(dtype, calls):
    layer = NormReLU(2)
    feature = torch.randn(2, 2, 8, 8).to(dtype, memory_format=torch.channels_last)
    feature[0, 0, 0, 0] = torch.nan
    feature.requires_grad_()
    made = layer(feature)
    made.sum().backward()
    assert made[:, 0].isnan().all() and made[:, 1].isfinite().all()
    assert feature.grad[:, 0].isnan().all() and feature.grad[:, 1].isfinite().all()
    assert calls == ["forward", "backward"]


def test_compiled_kernels_leave_other_layouts_and_evaluation_to_torch(calls):
    feature = torch.randn(2, 4, 8, 8)
    NormReLU(4)(feature)
    NormReLU(4).eval()(feature.to(memory_format=torch.channels_last))
    NormReLU(4).double()(feature.to(torch.float64, memory_format=torch.channels_last))
    assert not calls


def agree_in_triton():
    for shape in SHAPES:
        compare(shape, "cpu", torch.float16, in_triton)


def test_kernels_in_triton_agree_with_float64(interpreted):
    interpreted(agree_in_triton)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [*SHAPES, (8, 32, 256, 256)])
def test_layer_on_a_gpu_agrees_with_float64(shape, dtype, monkeypatch):
    calls = []
    forward = norm_relu._Fused.forward
    monkeypatch.setattr(norm_relu._Fused, "forward", staticmethod(lambda *given: calls.append(1) or forward(*given)))
    compare(shape, "cuda", dtype, lambda layer, feature: layer(feature))
    assert calls


def test_layer_turned_into_a_synchronised_one_keeps_its_relu():
    layer = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(NormReLU(4))).eval()
    assert isinstance(layer[0].norm, nn.SyncBatchNorm)
    assert layer(torch.randn(2, 4, 8, 8)).min() == 0


def test_layers_of_several_models_are_batched_by_vmap(compiled):
    layers = [NormReLU(3) for _ in range(2)]
    parameters, buffers = torch.func.stack_module_state(layers)
    feature_BCHW = torch.randn(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)

    def run(parameters, buffers):
        return torch.func.functional_call(layers[0].eval(), (parameters, buffers), (feature_BCHW,))

    assert torch.vmap(run)(parameters, buffers).shape == (2, 4, 3, 8, 8)
