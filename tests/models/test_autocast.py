"""A step of every architecture in every precision: as autocast has it on a CPU, and as it has it on a GPU."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from msad.models.base import SelfTraining
from msad.models.blocks import NORMS, SKIPS, gated
from msad.models.registry import architecture, architectures, build, default_parameters

# What autocast computes in float32 on a GPU (pytorch.org/docs/stable/amp.html) and leaves as it is on a CPU: its
# results have another type there, which not every operator after them takes.
IN_FLOAT32 = {
    "acos",
    "asin",
    "cosh",
    "erfinv",
    "exp",
    "expm1",
    "log",
    "log10",
    "log1p",
    "log2",
    "pow",
    "__pow__",
    "reciprocal",
    "rsqrt",
    "sinh",
    "tan",
    "softmax",
    "log_softmax",
    "softmin",
    "softplus",
    "gelu",
    "cumsum",
    "cumprod",
    "prod",
    "sum",
    "norm",
    "vector_norm",
    "dist",
    "cdist",
    "renorm",
    "group_norm",
    "layer_norm",
    "cosine_similarity",
    "normalize",
    "l1_loss",
    "mse_loss",
    "smooth_l1_loss",
    "huber_loss",
    "nll_loss",
    "kl_div",
    "binary_cross_entropy_with_logits",
}
SMALL = {
    "base_width": 4,
    "segment_width": 4,
    "depth": 2,
    "first_skip": 0,
    "skip_dropout": 0.0,
    "dropout": 0.0,
    "width": 8,
    "bottleneck_channels": 8,
}
KNOBS = {"norm": NORMS, "skip": SKIPS}


class AsOnGPU(TorchFunctionMode):
    """Gives the operators above float32, wherever autocast is on."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function.__name__ in IN_FLOAT32 and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map(
                lambda value: value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value,
                (args, kwargs or {}),
            )
        return function(*args, **(kwargs or {}))


def trained() -> list:
    """Every architecture with losses, small, with each of its normalisations and skips."""
    found = []
    for name in architectures():
        if not architecture(name).loss_terms:  # trained by no steps
            continue
        known = default_parameters(name)
        small = {key: value for key, value in SMALL.items() if key in known}
        knobs = [key for key in KNOBS if key in known]
        for chosen in itertools.product(*(KNOBS[key] for key in knobs)):
            parameters = small | dict(zip(knobs, chosen, strict=True))
            found.append(pytest.param(name, parameters, id="-".join((name, *chosen))))
    return [one for one in found if not issubclass(architecture(one.values[0]), SelfTraining)]


EVERY = pytest.mark.parametrize(("name", "parameters"), trained())


def step(name, parameters, device, kind):
    """Take a step's losses and gradients, check that they are numbers, and return the sum of the losses."""
    torch.manual_seed(0)
    model = build(name, **parameters).to(device, memory_format=torch.channels_last).train()
    clean_BCHW, mask_B1HW = torch.rand(2, 3, 32, 32, device=device), torch.zeros(2, 1, 32, 32, device=device)
    mask_B1HW[..., 8:16, 8:24] = 1
    corrupted_BCHW = torch.where(mask_B1HW > 0, 1 - clean_BCHW, clean_BCHW)
    with torch.no_grad():
        model.adapt([model.encode(clean_BCHW)])
    with torch.autocast(device, kind, enabled=kind != torch.float32):
        terms = model.losses(clean_BCHW, corrupted_BCHW, mask_B1HW)
    assert all(value.dtype == torch.float32 and value.isfinite() for value in terms.values())
    loss = sum(terms.values())
    loss.backward()
    for path, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), path
    return loss.item()


@EVERY
def test_step_under_autocast_is_near_float32(name, parameters):
    exact = step(name, parameters, "cpu", torch.float32)
    assert step(name, parameters, "cpu", torch.bfloat16) == pytest.approx(exact, rel=0.05)
    with AsOnGPU():
        for kind in (torch.bfloat16, torch.float16):
            assert step(name, parameters, "cpu", kind) == pytest.approx(exact, rel=0.05)


@EVERY
def test_step_under_autocast_with_compiled_kernels_is_near_float32(name, parameters, compiled):
    exact = step(name, parameters, "cpu", torch.float32)
    with AsOnGPU():
        assert step(name, parameters, "cpu", torch.bfloat16) == pytest.approx(exact, rel=0.05)


@pytest.mark.gpu
@EVERY
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_step_on_a_gpu_is_near_the_cpus(name, parameters, kind):
    exact = step(name, parameters, "cpu", torch.float32)
    assert step(name, parameters, "cuda", kind) == pytest.approx(exact, rel=0.05)


def test_gate_of_features_of_several_precisions_has_the_widest():
    decoder, skip, gate = (torch.randn(1, 4, 2, 2) for _ in range(3))
    made = gated(decoder.bfloat16(), skip, gate.bfloat16())
    assert made.dtype == torch.float32
    wanted = gated(decoder.bfloat16().float(), skip, gate.bfloat16().float())
    torch.testing.assert_close(made, wanted)
