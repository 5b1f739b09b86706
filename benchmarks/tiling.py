"""Tiny defects on large images: a network that sees the image shrunk, beside one that sees it tile by tile.

    python benchmarks/tiling.py                              makes 512 pixel images of brick with specks of 6 to 10
    python benchmarks/tiling.py --category gravel --epochs 20
    python benchmarks/tiling.py --root mvtec --category bottle --size 768 --view 256

Both arms have the same architecture, which sees `--view` pixels at once, and the same images; only the first shrinks
them. The images made are cut from a photograph of scikit-image's (CC0), mirrored at its borders.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from msad.bundle.bundles import Bundle
from msad.bundle.evaluation import evaluate
from msad.cluster.workers.job_worker import load_training_data
from msad.data_io.photographs import load_photograph
from msad.training.job_config import JobConfig
from msad.training.loop import fit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="a dataset; made here if not given")
    parser.add_argument("--category", default="brick", help="without --root: brick, grass or gravel")
    parser.add_argument("--architecture", default="feature_pyramid")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--view", type=int, default=128)
    parser.add_argument("--specks", type=int, nargs=2, default=(6, 10), help="diameters in pixels, at --size")
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = options.root or make_specks(Path(folder) / "data", options.category, options.size, options.specks)
        common = {
            "category": options.category,
            "architecture": options.architecture,
            "epochs": options.epochs,
            "evaluate_every": options.epochs,
            "learning_rate": 2e-3,
            "batch_size": 16,
        }
        shrunk = JobConfig(**common, image_size=options.view)
        tiles = JobConfig(**common, image_size=options.size, tiling={"tile": options.view})
        print(f"{options.category} at {options.size} pixels, {options.architecture} sees {options.view} at once")
        for name, job in (("shrunk", shrunk), ("tiles", tiles)):
            began = time.perf_counter()
            metrics = measure(job, root, Path(folder) / "cache")
            keys = [key for key in ("image_auroc", "pixel_prauc", "aupro_30") if key in metrics]
            figures = "  ".join(f"{key} {metrics[key]:.3f}" for key in keys)
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
            print(f"{name:7} {figures}  {time.perf_counter() - began:.0f} s, at most {memory} MiB", flush=True)


def measure(job: JobConfig, root: Path, cache: Path) -> dict[str, float]:
    """Train a job and return its figures on the test split."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = load_training_data(job, root, cache)
    fitted = fit(job, data, device=device, report=lambda *_: None, get_checkpoint=lambda: None)
    return evaluate(Bundle(fitted.model, fitted.scorer, fitted.threshold, job), root, job.category, cache).metrics


def make_specks(root: Path, texture: str, size: int, diameters: Sequence[int], train: int = 24, test: int = 16) -> Path:
    """Write a dataset of a texture in the MVTec AD layout, whose defects are single specks, half of them light."""
    photograph = load_photograph(f"{texture}.png")[..., 0].astype(np.float32)
    rng = np.random.default_rng(0)
    rows, columns = np.indices((size, size))
    kinds = [("train/good", train), ("test/good", test), ("test/speck", test)]
    for kind, index in [(kind, index) for kind, count in kinds for index in range(count)]:
        top, left = rng.integers(0, len(photograph), 2)
        window = np.pad(photograph, ((0, size), (0, size)), mode="symmetric")[top : top + size, left : left + size]
        picture = window[:: rng.choice([-1, 1]), :: rng.choice([-1, 1])] * rng.uniform(0.9, 1.1)
        if kind == "test/speck":
            radius, (y, x) = rng.uniform(*diameters) / 2, rng.integers(size // 16, size - size // 16, 2)
            distance = np.hypot(rows - y, columns - x)
            picture = np.where(distance < radius, 250 if index % 2 else 8, picture)
            _save(255 * (distance < radius), root / texture / "ground_truth/speck" / f"{index:03}_mask.png")
        _save(picture + rng.normal(0, 3, picture.shape), root / texture / kind / f"{index:03}.png")
    return root


def _save(grey: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(path)


if __name__ == "__main__":
    main()
