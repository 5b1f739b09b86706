from __future__ import annotations

import threading

import pytest
import torch

from msad.models.precision import full_float32
from msad.models.scorer import Scoring, fit_scorer

BACKENDS = torch.backends


def settings():
    new = (BACKENDS.cudnn.conv, BACKENDS.cuda.matmul, BACKENDS.mkldnn.conv, BACKENDS.mkldnn.matmul)
    return [operation.fp32_precision for operation in new]


@pytest.fixture
def imprecise():
    """Somebody's process with everything faster and less precise."""
    before = BACKENDS.cudnn.allow_tf32, torch.get_float32_matmul_precision(), BACKENDS.mkldnn.conv.fp32_precision
    BACKENDS.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("medium")
    BACKENDS.mkldnn.conv.fp32_precision = "bf16"
    yield settings()
    BACKENDS.cudnn.allow_tf32 = before[0]
    torch.set_float32_matmul_precision(before[1])
    BACKENDS.mkldnn.conv.fp32_precision = before[2]


def test_full_float32_turns_tf32_and_bfloat16_off_and_leaves_all_as_it_was(imprecise):
    assert not set(imprecise) & {"none", "ieee"}
    with full_float32(), full_float32():
        assert set(settings()) <= {"none", "ieee"}
        assert not BACKENDS.cudnn.allow_tf32 and torch.get_float32_matmul_precision() == "highest"
    assert settings() == imprecise


def test_full_float32_lasts_until_the_last_thread_has_left(imprecise):
    inside, leave = threading.Event(), threading.Event()

    def score():
        with full_float32():
            inside.set()
            leave.wait(10)

    other = threading.Thread(target=score)
    with full_float32():
        other.start()
        assert inside.wait(10)
    assert set(settings()) <= {"none", "ieee"}
    leave.set()
    other.join()
    assert settings() == imprecise


def test_full_float32_returns_after_an_error(imprecise):
    with pytest.raises(ZeroDivisionError), full_float32():
        1 / 0  # noqa: B018
    assert settings() == imprecise


def test_scores_are_the_same_under_somebodys_autocast(imprecise):
    maps = {"a": torch.rand(3, 1, 32, 40, generator=torch.Generator().manual_seed(0))}
    scorer = fit_scorer(Scoring({"a": 1.0}, 2.0, "top1", "position"), maps)
    expected = scorer(maps)
    with torch.autocast("cpu", torch.bfloat16):
        found = scorer(maps)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
