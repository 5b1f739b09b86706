"""Datasets for the tests: a small demo made once, a hand-made root per test, and the real images where they are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msad.data_io.demo import make_demo

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Path:
    """The demo dataset, small. Read only."""
    return make_demo(tmp_path_factory.mktemp("demo") / "root", image_size=48, train=8, good=3, per_defect=3)


@pytest.fixture
def real_root() -> Path:
    root = Path(os.environ.get("MSAD_DATA", REPOSITORY.parent / "shared" / "data" / "industrial"))
    if not (root / "bottle").is_dir():
        pytest.skip("the real images are not here; set MSAD_DATA to a root with bottle and magnetic_tile")
    return root


@pytest.fixture
def root(tmp_path) -> Path:
    """A hand-made root, free to be spoilt: category part with 6 train, 2 good, 2 cracked images of differing sizes."""
    folder = tmp_path / "root" / "part"
    rng = np.random.default_rng(0)
    for index in range(6):
        save_noise(folder / "train" / "good" / f"{index}.png", rng)
    for index in range(2):
        save_noise(folder / "test" / "good" / f"{index}.png", rng)
        save_noise(folder / "test" / "crack" / f"{index}.png", rng, height=20 + index)
        mask = np.zeros((20 + index, 24), np.uint8)
        mask[5:9, 6:12] = 255
        path = folder / "ground_truth" / "crack" / f"{index}_mask.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
    return folder.parent


def save_noise(path: Path, rng: np.random.Generator, height: int = 20, width: int = 24) -> np.ndarray:
    pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def python(code: str, *arguments: str | Path) -> subprocess.Popen:
    """Start another interpreter on `code`, with the repository importable."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
