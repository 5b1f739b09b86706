"""Every kernel in Triton is compiled for a GPU here, without one; what they compute is tested beside each operation."""

from __future__ import annotations

import warnings

import pytest
import torch

from msad.models.kernels import gpu_kernels

needs_triton = pytest.mark.skipif(gpu_kernels.triton is None, reason="needs Triton")

# Triton compiles with the arguments of a launch; this driver knows the GPU's kind, and no launch follows.
COMPILES = """
import sys
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction


class Driver:
    get_current_target = staticmethod(lambda: GPUTarget("cuda", int(sys.argv[1]), 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda _device=None: 0)


names, launch = set(), JITFunction.run


def compile_alone(kernel, *given, grid, warmup, **constants):
    made = launch(kernel, *given, grid=grid, warmup=True, **constants)
    assert made.asm["cubin"]
    names.add(f"{kernel.__module__}.{kernel.__name__}")


driver.set_active(Driver)
JITFunction.run = compile_alone

from msad.models.kernels import gate, gate_gpu, gpu_kernels, max_pool, max_pool_gpu
from msad.models.kernels import norm_relu, norm_relu_gpu, similarity, similarity_gpu

gpu_kernels._increment[(1,)](torch.zeros(1))
# Triton makes constants of sizes of 1, and has other code for sizes that 16 divides.
for channels, side in ((32, 64), (1, 6), (3, 2), (1, 1)):
    feature = torch.rand(1, channels, side, side).to(torch.bfloat16, memory_format=torch.channels_last).requires_grad_()
    image = torch.rand(1, channels, side, side).requires_grad_()
    layer = norm_relu.NormReLU(channels).norm
    running = layer.running_mean, layer.running_var, layer.momentum, layer.eps
    gate._Gated.apply(gate_gpu.run, feature, feature, feature).sum().backward()
    norm_relu._Fused.apply(norm_relu_gpu, feature, layer.weight, layer.bias, *running).sum().backward()
    similarity.GradientSimilarity.apply(similarity_gpu, image, image.detach()).backward()
    if side > 1:
        max_pool._MaxPool.apply(max_pool_gpu.run, feature).sum().backward()
    if side > 5:
        window = similarity._window().float()
        similarity.SSIM.apply(similarity_gpu, image, image.detach(), window).sum().backward()
print(*sorted(names))
"""


@needs_triton
@pytest.mark.parametrize(  # Turing, Ampere, Hopper, Blackwell
    "capability", [90, *(pytest.param(older_or_newer, marks=pytest.mark.slow) for older_or_newer in (75, 80, 120))]
)
def test_every_kernel_compiles_for_a_gpu(capability, tmp_path, run_python):
    printed = run_python(COMPILES, str(capability), TRITON_CACHE_DIR=str(tmp_path))
    assert set(printed.split()) == {
        "msad.models.kernels.gate_gpu._backward",
        "msad.models.kernels.gate_gpu._forward",
        "msad.models.kernels.gpu_kernels._increment",
        "msad.models.kernels.max_pool_gpu._backward",
        "msad.models.kernels.max_pool_gpu._forward",
        "msad.models.kernels.norm_relu_gpu._backward",
        "msad.models.kernels.norm_relu_gpu._forward",
        "msad.models.kernels.norm_relu_gpu._merged",
        "msad.models.kernels.norm_relu_gpu._statistics",
        "msad.models.kernels.norm_relu_gpu._sums",
        "msad.models.kernels.similarity_gpu._across",
        "msad.models.kernels.similarity_gpu._across_again",
        "msad.models.kernels.similarity_gpu._compared",
        "msad.models.kernels.similarity_gpu._down_again",
        "msad.models.kernels.similarity_gpu._prewitt_again",
        "msad.models.kernels.similarity_gpu._similar",
    }


@needs_triton
def test_kernels_that_cannot_be_compiled_are_named_once_and_left_to_torch(monkeypatch):
    def fails(*_given, **_constants):
        raise RuntimeError("Failed to find C compiler\nand more")

    monkeypatch.setattr(gpu_kernels, "_increment", {(1,): fails})
    monkeypatch.setattr(gpu_kernels, "_works", {})
    with pytest.warns(UserWarning, match=r"slower.*C compiler.*RuntimeError: Failed to find C compiler\)"):
        assert not gpu_kernels.works(torch.device("cpu"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not gpu_kernels.works(torch.device("cpu"))


def test_kernels_do_not_take_what_lies_on_a_cpu():
    assert not gpu_kernels.takes(torch.zeros(1))


@pytest.mark.gpu
def test_kernels_work_on_this_gpu():
    feature = torch.zeros(1, 8, 4, 4, device="cuda", dtype=torch.bfloat16)
    assert not gpu_kernels.takes_interleaved(feature)
    assert gpu_kernels.takes_interleaved(feature.to(memory_format=torch.channels_last))
