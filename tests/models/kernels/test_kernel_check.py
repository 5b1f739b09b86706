"""Kernels that fail to run or to agree are left to torch, with one warning; those that are right prove themselves."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch

from msad.models.kernels import kernel_check, native
from msad.models.kernels.enlarge import doubled
from msad.models.kernels.feature_distance import feature_distances
from msad.models.kernels.norm_relu import NormReLU
from msad.models.similarity import ssim_map

CPU = torch.device("cpu")


def feature(*shape, kind=torch.float32, seed=0):
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return drawn.to(kind, memory_format=torch.channels_last).requires_grad_()


def image(seed):
    return torch.rand((2, 3, 24, 24), generator=torch.Generator().manual_seed(seed))


# By the name that a warning has: what runs the operation on features of a type.
OPERATIONS = {
    "batch normalisation and ReLU": lambda kind: NormReLU(8)(feature(2, 8, 24, 24, kind=kind)),
    "enlarging": lambda kind: doubled(feature(2, 8, 24, 24, kind=kind)),
    "feature distances": lambda kind: torch.stack(
        feature_distances(feature(2, 8, 24, 24, kind=kind), feature(2, 8, 24, 24, seed=1).detach())
    ),
    "SSIM": lambda _: ssim_map(image(0).requires_grad_(), image(1)),
}
EVERY = pytest.mark.parametrize("name", OPERATIONS)


def test_every_kernel_has_a_trial():
    assert set(OPERATIONS) == set(kernel_check._trials)


@EVERY
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_kernel_proves_itself(name, kind, compiled):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        OPERATIONS[name](kind)
    assert {known[0] for known in kernel_check._agreed} == {name} and not kernel_check._refused


@EVERY
@pytest.mark.parametrize("fault", ["forward", "backward", "raises"])
def test_compiled_kernel_that_fails_is_left_to_torch(name, fault, compiled, monkeypatch):
    run, call, calls = OPERATIONS[name], native.call, []

    def broken(library, dtype, direction, first, *given):
        calls.append(direction)
        if fault == "raises":
            raise OSError("no such instruction\nand more")
        call(library, dtype, direction, first.square() if direction == fault else first, *given)

    with monkeypatch.context() as alone:
        alone.setattr(native, "_loaded", {})
        wanted = run(torch.float32)
    monkeypatch.setattr(native, "call", broken)
    said = (
        "failed .OSError: no such instruction.$" if fault == "raises" else "its .* is off by .* of the largest value$"
    )
    with pytest.warns(UserWarning, match=f"msad's own kernel for {name} on cpu: with float32, .*×.* {said}"):
        found = run(torch.float32)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert calls
    calls.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(torch.bfloat16)  # another type, for which nobody tries it again
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


@pytest.fixture
def doubling(monkeypatch):
    """A function that registers a kernel for doubling, and the calls of it."""
    monkeypatch.setattr(kernel_check, "_trials", {})
    calls = []

    def register(ours):
        def run(value):
            calls.append(value)
            return ours(value)

        @kernel_check.trial("doubling")
        def _trial(device, dtype, _channels):
            drawn = kernel_check.away_from_zero((2, 4, 8, 8), device, 0).to(dtype)
            yield run, double, (drawn.requires_grad_(),)

        return calls

    return register


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        (lambda value: 2.1 * value, r"its result 1 is off by 5\.\de-02 of the largest value"),
        (lambda value: value * torch.nan, "its result 1 is off by nan"),
        (WrongGradient.apply, r"its gradient of input 1 is off by 5\.\de-02"),
        (lambda value: value.detach() + value, r"its gradient of input 1 is off by 5\.\de-01"),
        (lambda value: 1 / 0, "it failed .ZeroDivisionError: division by zero"),
    ],
)
def test_wrong_operation_is_refused_with_the_reason(ours, said, doubling):
    doubling(ours)
    with pytest.warns(UserWarning, match=f"kernel for doubling on cpu: with bfloat16, 2×4×8×8 {said}"):
        assert not kernel_check.agrees("doubling", CPU, torch.bfloat16)


def test_check_happens_once_for_a_type_and_draws_from_no_generator_of_others(doubling):
    calls, state = doubling(double), torch.get_rng_state()
    for kind in (torch.float32, torch.float16, torch.float32):
        assert kernel_check.agrees("doubling", CPU, kind)
    assert [one.dtype for one in calls] == [torch.float32, torch.float16]
    assert kernel_check.agrees("doubling", CPU, torch.float32, 5) and len(calls) == 3
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_check_is_the_same_in_every_mode(mode, doubling):
    def ours(value):
        assert not torch.is_autocast_enabled("cpu")
        return WrongGradient.apply(value)

    doubling(ours)
    with mode(), pytest.warns(UserWarning, match="gradient"):
        assert not kernel_check.agrees("doubling", CPU, torch.float32)


def test_check_by_two_threads_at_once_happens_once(doubling):
    calls, verdicts, together = doubling(double), [], threading.Barrier(2)

    def ask():
        together.wait()
        verdicts.append(kernel_check.agrees("doubling", CPU, torch.float32))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == [True, True] and len(calls) == 1


def test_full_device_says_nothing_about_a_kernel(doubling):
    def full(_value):
        raise torch.OutOfMemoryError("full")

    doubling(full)
    with pytest.raises(torch.OutOfMemoryError):
        kernel_check.agrees("doubling", CPU, torch.float32)
    doubling(double)
    assert kernel_check.agrees("doubling", CPU, torch.float32)


def test_nothing_is_tried_while_a_graph_is_recorded(doubling, monkeypatch):
    calls, there = doubling(double), torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not kernel_check.agrees("doubling", there, torch.float32) and not calls
    kernel_check._agreed.add(("doubling", there, torch.float32, None))
    assert kernel_check.agrees("doubling", there, torch.float32) and not calls


def test_kernel_that_is_left_to_torch_is_neither_tried_nor_warned_of(doubling, monkeypatch):
    calls = doubling(double)
    monkeypatch.setattr(kernel_check, "left_to_torch", {"doubling"})
    assert not kernel_check.agrees("doubling", CPU, torch.float32) and not calls
