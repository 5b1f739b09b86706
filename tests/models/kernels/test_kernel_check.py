"""Kernels that fail to run or to agree are left to torch, with one warning; those that are right prove themselves."""

from __future__ import annotations

import functools
import threading
import warnings

import pytest
import torch
from torch.nn import functional as F

from msad.models.kernels import gate, gate_gpu, gpu_kernels, kernel_check, native, similarity_gpu
from msad.models.kernels.enlarge import doubled
from msad.models.kernels.feature_distance import feature_distances
from msad.models.kernels.gate import gated
from msad.models.kernels.max_pool import max_pool
from msad.models.kernels.norm_relu import NormReLU
from msad.models.kernels.similarity import gradient_similarity, ssim_map


def feature(*shape, kind=torch.float32, seed=0):
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return drawn.to(kind, memory_format=torch.channels_last).requires_grad_()


def image(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def normalised(feature_BCHW):
    return NormReLU(feature_BCHW.shape[1])(feature_BCHW)


# By the name that a warning has: what runs the operation on some shape and type, and the name of its kernel's gradient.
OPERATIONS = {
    "batch normalisation and ReLU": (lambda shape, kind: normalised(feature(*shape, kind=kind)), "_Fused"),
    "gates": (lambda shape, kind: gated(*(feature(*shape, kind=kind, seed=seed) for seed in range(3))), "_Gated"),
    "max pooling": (lambda shape, kind: max_pool(feature(*shape, kind=kind)), "_MaxPool"),
    "enlarging": (lambda shape, kind: doubled(feature(*shape, kind=kind)), "_Doubled"),
    "feature distances": (
        lambda shape, kind: torch.stack(
            feature_distances(feature(*shape, kind=kind), feature(*shape, seed=1).detach()),
        ),
        "Stack",
    ),
    "SSIM": (lambda shape, _: ssim_map(image(*shape).requires_grad_(), image(*shape, seed=1)), "SSIM"),
    "the similarity of gradients": (
        lambda shape, _: gradient_similarity(image(*shape).requires_grad_(), image(*shape, seed=1)),
        "GradientSimilarity",
    ),
}
EVERY = pytest.mark.parametrize("name", OPERATIONS)
SHAPES = [(2, 32, 48, 48), (1, 1, 2, 2), (3, 5, 12, 38), (1, 130, 14, 6), (8, 3, 300, 20)]


@EVERY
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_compiled_kernel_proves_itself_for_every_class(name, kind, shape, compiled):
    run, gradient = OPERATIONS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = run(shape, kind)
    small = name == "SSIM" and min(shape[2:]) <= 5  # no window fits
    assert made.grad_fn.name().startswith(gradient) or small
    assert not kernel_check._refused and len(kernel_check._proven) == (0 if small else 1)


@EVERY
@pytest.mark.parametrize("fault", ["forward", "backward", "raises"])
def test_compiled_kernel_that_fails_is_left_to_torch(name, fault, compiled, monkeypatch):
    if (name, fault) == ("the similarity of gradients", "backward"):
        pytest.skip("its gradient is made going forward")
    run, shape, call, calls = OPERATIONS[name][0], (2, 8, 24, 24), native.call, []

    def broken(library, direction, first, *given):
        calls.append(direction)
        if fault == "raises":
            raise OSError("no such instruction\nand more")
        call(library, direction, first.square() if direction == fault else first, *given)

    with monkeypatch.context() as alone:
        alone.setattr(native, "_loaded", {})
        wanted = run(shape, torch.float32)
    monkeypatch.setattr(native, "call", broken)
    said = "failed .OSError: no such instruction.$" if fault == "raises" else "its .* is off by .* more than 0.0001$"
    with pytest.warns(UserWarning, match=f"msad's own kernel for {name} on cpu: with float32, .*2×8×24×24.* {said}"):
        found = run(shape, torch.float32)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert calls
    calls.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run((1, 4, 16, 16), torch.bfloat16)  # another class, for which nobody tries it again
    assert not calls


def double(value):
    return 2 * value


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return 2 * value

    @staticmethod
    def backward(ctx, gradient):
        return 2.1 * gradient


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        (lambda value: 2.1 * value, r"its result is off by 5\.\de-02 of the largest value, more than 0\.01"),
        (lambda value: value * torch.nan, "its result is off by nan"),
        (WrongGradient.apply, r"its gradient of input 1 is off by 5\.\de-02"),
        (lambda value: value.detach() + value, r"its gradient of input 1 is off by 5\.\de-01"),
        (lambda value: 1 / 0, "it failed .ZeroDivisionError: division by zero"),
    ],
)
def test_wrong_operation_is_refused_with_the_reason(ours, said):
    with pytest.warns(UserWarning, match=f"kernel for doubling on cpu: with bfloat16, 2×4×8×8 {said}"):
        assert not kernel_check.agrees("doubling", ours, double, feature(4, 4, 8, 8, kind=torch.bfloat16))


def test_check_happens_once_for_a_class_and_draws_from_no_generator_of_others():
    calls = []
    ours = lambda value: calls.append(value) or 2 * value  # noqa: E731
    state = torch.get_rng_state()
    for shape in ((2, 8, 64, 64), (9, 8, 96, 32)):  # sides that 32 divides are one class
        assert kernel_check.agrees("doubling", ours, double, feature(*shape))
    assert len(calls) == 1 and calls[0].shape == (2, 8, 32, 32)
    assert calls[0].is_contiguous(memory_format=torch.channels_last) and calls[0].requires_grad
    assert kernel_check.agrees("doubling", ours, double, feature(2, 8, 64, 64).detach())
    assert kernel_check.agrees("doubling", ours, double, feature(2, 8, 64, 64, kind=torch.float16))
    assert len(calls) == 3 and torch.equal(torch.get_rng_state(), state)


def test_check_under_no_grad_and_autocast_is_as_without():
    def ours(value):
        assert not torch.is_autocast_enabled("cpu")
        return WrongGradient.apply(value)

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), pytest.warns(UserWarning, match="gradient"):
        assert not kernel_check.agrees("doubling", ours, double, feature(2, 4, 8, 8))


def test_check_by_two_threads_at_once_happens_once():
    calls, verdicts, together = [], [], threading.Barrier(2)

    def ours(value):
        calls.append(value)
        return 2 * value

    def ask():
        together.wait()
        verdicts.append(kernel_check.agrees("doubling", ours, double, feature(2, 4, 8, 8)))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == [True, True] and len(calls) == 1


def test_full_device_says_nothing_about_a_kernel():
    def full(_value):
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        kernel_check.agrees("doubling", full, double, feature(2, 4, 8, 8))
    assert kernel_check.agrees("doubling", double, double, feature(2, 4, 8, 8))


def test_nothing_is_proven_while_a_graph_is_recorded(monkeypatch):
    calls = []
    ours = lambda value: calls.append(value) or 2 * value  # noqa: E731
    given = feature(2, 4, 8, 8)
    monkeypatch.setattr(kernel_check, "recording", lambda _device: True)
    monkeypatch.setattr(gpu_kernels, "_works", {})
    assert not kernel_check.agrees("doubling", ours, double, given) and not gpu_kernels.works(given.device)
    assert not calls and not gpu_kernels._works
    monkeypatch.setattr(kernel_check, "recording", lambda _device: False)
    assert kernel_check.agrees("doubling", ours, double, given)
    monkeypatch.setattr(kernel_check, "recording", lambda _device: True)
    assert kernel_check.agrees("doubling", ours, double, given) and len(calls) == 1


def test_kernel_that_is_left_to_torch_is_neither_tried_nor_warned_of(monkeypatch):
    monkeypatch.setattr(kernel_check, "left_to_torch", {"doubling"})
    assert not kernel_check.agrees("doubling", lambda _: pytest.fail("not this one"), double, feature(2, 4, 8, 8))


@pytest.mark.parametrize(
    ("shape", "images", "small"),
    [
        ((8, 32, 256, 256), False, (8, 32, 32, 32)),
        ((40, 128, 66, 31), False, (24, 80, 34, 31)),
        ((1, 100, 1, 1), False, (1, 84, 1, 1)),
        ((8, 3, 256, 300), True, (8, 3, 128, 172)),
        ((256,), False, (80,)),
    ],
)
def test_small_shape_keeps_what_compilers_look_at(shape, images, small):
    assert kernel_check._small(shape, images, True) == small
    for size, kept in zip(shape, small, strict=True):
        assert (size % 16, size == 1) == (kept % 16, kept == 1)


def prove_in_triton():
    """Let what lies on the CPU go to Triton's interpreter, as on a GPU; break one kernel after all are proven."""
    for module in (gpu_kernels, similarity_gpu):
        module.takes = lambda _tensor: True
    on_gpu = [name for name in OPERATIONS if name not in ("enlarging", "feature distances")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in on_gpu:
            run, gradient = OPERATIONS[name]
            assert run((1, 3, 12, 10), torch.float16).grad_fn.name().startswith(gradient), name
    assert len(kernel_check._proven) == len(on_gpu) and not kernel_check._refused
    real = gate_gpu._backward
    gate_gpu._backward = {}  # no such grid
    with pytest.warns(UserWarning, match=r"gates on cpu: with float16, .*failed \(KeyError"):
        made = OPERATIONS["gates"][0]((1, 6, 4, 4), torch.float16)
    assert made.grad_fn.name().startswith("Lerp")
    gate_gpu._backward = real
    given = [feature(1, 6, 4, 4, kind=torch.float16, seed=seed) for seed in range(3)]
    ours = functools.partial(gate._Gated.apply, gate_gpu.run)
    assert kernel_check.agrees("gates again", ours, gate._by_torch, *given)


def test_kernels_in_triton_prove_themselves_and_a_broken_one_is_left_to_torch(interpreted):
    interpreted(prove_in_triton)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in ("enlarging", "feature distances")])
def test_kernel_on_a_gpu_proves_itself_for_every_class(name, kind, shape, monkeypatch):
    monkeypatch.setattr(torch, "randn", functools.partial(_on_gpu, torch.randn))
    monkeypatch.setattr(torch, "rand", functools.partial(_on_gpu, torch.rand))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        OPERATIONS[name][0](shape, kind)
    assert not kernel_check._refused


def _on_gpu(draw, shape, generator, device=None):
    return draw(shape, generator=generator, device=device or "cpu").cuda()


@pytest.mark.gpu
def test_broken_kernel_on_a_gpu_is_torchs_in_a_recorded_graph_too(monkeypatch):
    monkeypatch.setattr(gate_gpu, "_backward", {})
    given = [feature(2, 6, 4, 4, kind=torch.float16, seed=seed).detach().cuda().requires_grad_() for seed in range(3)]
    with pytest.warns(UserWarning, match="gates on cuda"):
        wanted = torch.autograd.grad(gated(*given).sum(), given)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = torch.autograd.grad(gated(*given).sum(), given)
    graph.replay()
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_operations_by_torch_are_compared_with_themselves():
    """A reference that wrongly calls the kernel would prove anything."""
    given = feature(2, 4, 8, 8)
    assert torch.equal(gate._by_torch(given, given, given), torch.lerp(given, given, torch.sigmoid(given)))
    assert torch.equal(max_pool(given), F.max_pool2d(given, 2))
