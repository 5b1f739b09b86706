"""The same bundle on a GPU and on a CPU: whether an image gets the same score and the same verdict.

    python benchmarks/devices.py --root mvtec --category bottle
    python benchmarks/devices.py --root mvtec --category bottle --bundles pulled/first pulled/second

Each architecture is trained for a few epochs on the first device, where its scoring and its threshold are chosen too;
or bundles are given. All photographs of the category, good and defective, are then scored on both devices. A difference
is told as a share of how far the threshold lies above the median of the good images. No Ray, no MLflow.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path

import defaults
import heading
import numpy as np
import torch

from msad.bundle.bundles import Bundle
from msad.cluster.workers.job_worker import load_training_data
from msad.models.registry import architecture, architectures
from msad.training.job_config import JobConfig
from msad.training.loop import fit

GOAL = 1e-3


def main() -> None:
    """Compare the devices and print the table."""
    options = _options()
    torch.set_num_threads(options.threads)
    first, second = map(torch.device, options.devices)
    folder = options.root / options.category
    photographs = sorted((folder / "train" / "good").iterdir())[: options.good]
    photographs += sorted(
        file for file in (folder / "test").rglob("*") if file.suffix.lower() in (".png", ".jpg", ".bmp")
    )
    lines = [f"{'model':24} {'images':>6} {'scores off by':>14} {'nearest to threshold':>21} {'verdicts differ':>16}"]
    for name, saved in _bundles(options, first):
        one, other = (Bundle.load(saved, device) for device in (first, second))
        scores_N, others_N = (_scores(bundle, photographs) for bundle in (one, other))
        distance = one.threshold - np.median(scores_N[: options.good])
        apart, nearest = (np.abs(scores_N - others_N).max(), np.abs(scores_N - one.threshold).min())
        differ = ((scores_N > one.threshold) != (others_N > one.threshold)).sum()
        lines.append(f"{name:24} {len(scores_N):6} {apart / distance:14.1e} {nearest / distance:21.1e} {differ:16}")
        print(lines[-1], flush=True)
    print()
    heading.tell(options, first, "\n".join([*lines, f"goal: at most {GOAL:g}, and no verdict; {first} and {second}"]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="dataset in the MVTec AD layout")
    parser.add_argument("--category", required=True)
    parser.add_argument("--bundles", type=Path, nargs="*", help="folders; by default short trainings of ARCHITECTURES")
    parser.add_argument("--architectures", nargs="+", default=architectures(), metavar="NAME")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--good", type=int, default=50, help="training images that are scored beside the test images")
    parser.add_argument("--devices", nargs=2, default=["cuda", "cpu"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cache", type=Path, help="of decoded images; default: msad's own")
    parser.add_argument("--output", type=Path, help="write the table here too")
    return parser.parse_args()


def _bundles(options: argparse.Namespace, device: torch.device) -> Iterator[tuple[str, Path]]:
    """Yield names and folders of bundles."""
    for folder in options.bundles or ():
        yield folder.name, folder
    for name in () if options.bundles else options.architectures:
        settings = architecture(name).training_defaults | {"image_size": options.image_size}
        job = JobConfig(category=options.category, architecture=name, **settings)
        epochs = min(job.epochs, options.epochs)
        job = dataclasses.replace(job, epochs=epochs, steps=0, evaluate_every=epochs)
        data = load_training_data(job, options.root, options.cache)
        fitted = fit(job, data, device=device, report=lambda *_: None, get_checkpoint=lambda: None)
        bundle = defaults.bundle(job, fitted)
        with tempfile.TemporaryDirectory() as scratch:
            yield name, bundle.save(Path(scratch) / name)


def _scores(bundle: Bundle, photographs: list[Path]) -> np.ndarray:
    """Return the score of each photograph, N."""
    return np.array([prediction.score for prediction in bundle.predict(photographs)])


if __name__ == "__main__":
    main()
