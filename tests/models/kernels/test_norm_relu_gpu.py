"""The kernels in Triton are compiled for a GPU here, without one; test_norm_relu.py has what they compute."""

from __future__ import annotations

import pytest

from msad.models.kernels import norm_relu_gpu

needs_triton = pytest.mark.skipif(norm_relu_gpu.triton is None, reason="needs Triton")

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

from msad.models.kernels import norm_relu, norm_relu_gpu

norm_relu._kernels = lambda _feature: norm_relu_gpu
# Triton makes constants of sizes of 1, and has other code for sizes that 16 divides.
for channels, side in ((32, 64), (1, 6), (3, 2), (1, 1)):
    feature = torch.rand(1, channels, side, side).to(torch.bfloat16, memory_format=torch.channels_last).requires_grad_()
    layer = norm_relu.NormReLU(channels).norm
    norm_relu.norm_relu(feature, layer.weight, layer.bias, layer.eps)[0].sum().backward()
print(*sorted(names))
"""


@needs_triton
@pytest.mark.parametrize(  # Turing, Ampere, Hopper, Blackwell
    "capability", [90, *(pytest.param(older_or_newer, marks=pytest.mark.slow) for older_or_newer in (75, 80, 120))]
)
def test_every_kernel_compiles_for_a_gpu(capability, tmp_path, run_python):
    printed = run_python(COMPILES, str(capability), TRITON_CACHE_DIR=str(tmp_path))
    assert set(printed.split()) == {
        "msad.models.kernels.norm_relu_gpu._backward",
        "msad.models.kernels.norm_relu_gpu._forward",
        "msad.models.kernels.norm_relu_gpu._merged",
        "msad.models.kernels.norm_relu_gpu._statistics",
        "msad.models.kernels.norm_relu_gpu._sums",
    }
