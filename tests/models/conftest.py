"""Drawn products of known symmetry, for the tests of what good images allow."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import ndimage

from msad.models.kernels import native, norm_relu_gpu

SIZE = 96


def picture(grey_HW, rng):
    noisy = grey_HW + rng.normal(0, 2, grey_HW.shape)
    return np.repeat(noisy.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def angle_part(rng, turn):
    """An L of dark metal on a light table, drawn at an angle and nearly in the middle."""
    y, x = np.indices((SIZE, SIZE)) - (SIZE - 1) / 2 + rng.normal(0, 1, 2).reshape(2, 1, 1)
    u, v = (np.cos(turn) * x + np.sin(turn) * y) * 128 / SIZE, (np.cos(turn) * y - np.sin(turn) * x) * 128 / SIZE
    part = ((abs(u + 12) < 9) & (abs(v) < 36)) | ((u > -12) & (u < 28) & (v > 18) & (v < 36))
    return picture(np.where(part, 70.0, 200.0), rng)


def printed_capsule(rng):
    """A symmetric dark part, always upright, with three small strokes on it that are not symmetric."""
    image = np.full((SIZE, SIZE), 220.0)
    y, x = np.array([30, 20]) + rng.integers(-1, 2, 2)
    image[y : y + 36, x : x + 56] = 120
    image[y + 8 : y + 28, x + 12 : x + 16] = image[y + 8 : y + 12, x + 12 : x + 26] = 50
    image[y + 17 : y + 21, x + 12 : x + 22] = 50
    return picture(image, rng)


def noise(rng):
    field = ndimage.gaussian_filter(rng.normal(size=(SIZE + 32, SIZE + 32)), 2)[16:-16, 16:-16]
    return picture(128 + 40 * field / field.std(), rng)


def stripes(rng):
    across = np.arange(SIZE) / 9 + rng.uniform() + 3 * ndimage.gaussian_filter(rng.normal(size=(SIZE, SIZE)), 12)
    return picture(128 + 60 * np.sin(2 * np.pi * across), rng)


def diagonal_stripes(rng):
    y, x = np.indices((SIZE, SIZE))
    return picture(128 + 60 * np.sin(2 * np.pi * ((x + y) / 12 + rng.uniform())), rng)


PRODUCTS = {
    "part at any angle": (lambda rng: angle_part(rng, rng.uniform(0, 2 * np.pi)), 60),
    "part upright": (lambda rng: angle_part(rng, rng.normal(0, 0.02)), 40),
    "printed capsule": (printed_capsule, 40),
    "isotropic texture": (noise, 24),
    "vertical stripes": (stripes, 24),
    "diagonal stripes": (diagonal_stripes, 60),
}


@pytest.fixture(scope="session")
def drawn():
    """A function from a product's name and a seed to its good images, uint8 N×96×96×3."""

    def images(name: str, seed: int = 0) -> np.ndarray:
        draw, count = PRODUCTS[name]
        rng = np.random.default_rng(seed)
        return np.stack([draw(rng) for _ in range(count)])

    return images


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Small tensors gain nothing by threads, and on a busy machine those wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(
    params=[
        lambda feature: feature.detach(),
        lambda feature: feature.double(),
    ]
)
def unsuited(request, compiled, monkeypatch):
    """What makes a feature one that no kernel in C takes; a test that calls one fails."""
    monkeypatch.setattr(native, "call", lambda *_: pytest.fail("not for this one"))
    return request.param


@pytest.fixture
def set_threads():
    """`torch.set_num_threads`, for this test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def run_python():
    """Runs code in a process of its own, with words and variables given; returns what it prints."""

    def run(code, *words, **variables):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables}
        done = subprocess.run([sys.executable, "-c", code, *words], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def interpreted(request, run_python):
    """Runs a function of the test's file in a process whose kernels in Triton run on the CPU, in its interpreter."""
    if norm_relu_gpu.triton is None:
        pytest.skip("needs Triton")
    code = (
        "import sys, importlib.util as util; spec = util.spec_from_file_location('test', sys.argv[1]); "
        "test = util.module_from_spec(spec); spec.loader.exec_module(test); getattr(test, sys.argv[2])()"
    )
    return lambda function: run_python(code, str(request.path), function.__name__, TRITON_INTERPRET="1")
