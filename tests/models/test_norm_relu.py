"""The fused layer against torch's own: on a GPU, and its kernels in Triton's interpreter where there is none."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from models import norm_relu
from models.norm_relu import NormReLU

# Channels that fill a tile, that do not, and that need several; places that end amid a tile.
SHAPES = [(2, 32, 16, 16), (3, 5, 7, 9), (2, 96, 33, 31), (1, 200, 8, 8)]


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


def fused(layer, feature):
    norm = layer.norm
    running = norm.running_mean, norm.running_var
    return norm_relu._Fused.apply(feature, norm.weight, norm.bias, *running, norm.momentum, norm.eps)


@pytest.mark.parametrize("shape", SHAPES)
def test_layer_on_a_cpu_is_batch_normalisation_and_relu(shape):
    compare(shape, "cpu", torch.float32, lambda layer, feature: layer(feature))


@pytest.mark.skipif(norm_relu.triton is None, reason="needs Triton")
def test_kernels_in_the_interpreter_agree_with_float64():
    code = (
        "import torch, importlib.util as util; spec = util.spec_from_file_location('test', FILE); "
        "test = util.module_from_spec(spec); spec.loader.exec_module(test)\n"
        "for shape in test.SHAPES: test.compare(shape, 'cpu', torch.float16, test.fused)"
    ).replace("FILE", repr(__file__))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
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


def test_layers_of_several_models_are_batched_by_vmap():
    layers = [NormReLU(3) for _ in range(2)]
    parameters, buffers = torch.func.stack_module_state(layers)
    feature_BCHW = torch.randn(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)

    def run(parameters, buffers):
        return torch.func.functional_call(layers[0].eval(), (parameters, buffers), (feature_BCHW,))

    assert torch.vmap(run)(parameters, buffers).shape == (2, 4, 3, 8, 8)
