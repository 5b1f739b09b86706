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


@pytest.mark.parametrize("shape", SHAPES)
def test_layer_on_a_cpu_is_batch_normalisation_and_relu(shape):
    compare(shape, "cpu", torch.float32, lambda layer, feature: layer(feature))


@pytest.fixture
def calls(compiled, monkeypatch):
    """The names of the kernels in C, as they are called."""
    calls, call = [], native.call

    def noted(library, dtype, function, *given):
        calls.append(function)
        call(library, dtype, function, *given)

    monkeypatch.setattr(kernel_check, "agrees", lambda *_: True)  # it calls them too
    monkeypatch.setattr(native, "call", noted)
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


def test_compiled_kernels_read_features_of_every_layout(calls):
    planes = torch.randn(2, 4, 8, 8).requires_grad_()
    interleaved = planes.detach().to(memory_format=torch.channels_last).requires_grad_()
    for one in (planes, interleaved):
        (NormReLU(4)(one) * torch.arange(8)).sum().backward()
    assert torch.equal(planes.grad, interleaved.grad) and len(calls) == 4


def test_compiled_kernels_leave_evaluation_and_other_types_to_torch(calls):
    feature = torch.randn(2, 4, 8, 8)
    NormReLU(4).eval()(feature)
    NormReLU(4).double()(feature.double())
    assert not calls


def agree_in_triton():
    norm_relu._kernels = lambda _feature: norm_relu_gpu
    norm_relu_gpu.takes = lambda _device, _dtype: True
    norm_relu_gpu._PROGRAMS = 4  # so that one goes through several tiles
    for shape in SHAPES:
        compare(shape, "cpu", torch.float16, lambda layer, feature: layer(feature))
    assert len(kernel_check._agreed) == len({shape[1] for shape in SHAPES}) and not kernel_check._refused
    norm_relu_gpu._backward = {}  # no such grid
    with pytest.warns(UserWarning, match=r"ReLU on cpu: with float16.* it failed \(KeyError"):
        NormReLU(7)(torch.randn(2, 7, 4, 4).half())


def test_kernels_in_triton_prove_themselves_and_agree_with_float64(interpreted):
    interpreted(agree_in_triton)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [*SHAPES, (8, 32, 256, 256)])
def test_layer_on_a_gpu_agrees_with_float64(shape, dtype, monkeypatch):
    calls, forward = [], norm_relu_gpu.forward
    monkeypatch.setattr(norm_relu_gpu, "forward", lambda *given: calls.append(1) or forward(*given))
    compare(shape, "cuda", dtype, lambda layer, feature: layer(feature))
    assert calls and not kernel_check._refused


@pytest.mark.gpu
def test_broken_kernel_on_a_gpu_is_torchs_in_a_recorded_graph_too(monkeypatch):
    monkeypatch.setattr(norm_relu_gpu, "_backward", {})
    layer, feature = NormReLU(6).cuda(), torch.randn(2, 6, 4, 4, device="cuda").half().requires_grad_()
    with pytest.warns(UserWarning, match="ReLU on cuda"):
        (wanted,) = torch.autograd.grad(layer(feature).sum(), feature)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        (found,) = torch.autograd.grad(layer(feature).sum(), feature)
    graph.replay()
    torch.testing.assert_close(found, wanted)


def test_layer_turned_into_a_synchronised_one_keeps_its_relu():
    layer = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(NormReLU(4))).eval()
    assert isinstance(layer[0].norm, nn.SyncBatchNorm)
    assert layer(torch.randn(2, 4, 8, 8)).min() == 0
