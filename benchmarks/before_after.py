"""Two checkouts by turns: whether a change that should change no speed has changed one.

    python benchmarks/before_after.py BEFORE AFTER --root mvtec --category bottle
    python benchmarks/before_after.py BEFORE AFTER --overhead --rounds 5

Each checkout has an environment of its own in `.venv`, and its own `benchmarks/`, which is what is run: the epochs of a
job as in `training.py`, or `overhead.py start`. All is told in processor seconds, of one thread, so that a
machine on which others work can tell it too; they grow there by what others take of the caches, for both sides alike
where they go by turns. The table holds medians, and the median of each round's ratio with the lowest and the highest.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path

# Run in a checkout's `benchmarks/`: its own names, whatever its modules are called.
EPOCHS = """
import dataclasses, sys, time
import torch
time.perf_counter = time.process_time
import training
root, cache, category, name, size, images, epochs = sys.argv[1:]
torch.set_num_threads(1)
training.keep_freed_memory()
training.native.prepare(training.Path(cache))
defaults = training.architecture(name).training_defaults
job = training.JobConfig(category=category, architecture=name, **({"image_size": int(size)} | defaults))
job = dataclasses.replace(job, epochs=int(epochs), evaluate_every=1)
data = training.load_training_data(job, training.Path(root), training.Path(cache))
data = dataclasses.replace(data, train_NHWC=data.train_NHWC[: int(images)])
print("an image:", 1 / training._ours(job, data, torch.device("cpu")))
"""
OVERHEAD = {
    "until the first step, the driver": r"processor time till then, of the driver +([\d.]+) s",
    "until the first step, the worker": r"processor time till then, of the worker +([\d.]+) s",
}


def main() -> None:
    """Run both by turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--overhead", action="store_true", help="of starting a sweep, instead of training")
    parser.add_argument("--root", type=Path, help="dataset in the MVTec AD layout")
    parser.add_argument("--category", default="bottle")
    parser.add_argument("--architecture", default="multiscale")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--images", type=int, default=16, help="train on the first ones only")
    parser.add_argument("--epochs", type=int, default=4, help="of a round, of which the first is left out")
    parser.add_argument("--cache", type=Path, default=Path("cache"), help="of decoded images, apart for each")
    options = parser.parse_args()
    if not options.overhead and options.root is None:
        parser.error("training needs --root")
    rounds: list[dict[str, tuple[float, float]]] = []
    for number in range(options.rounds):
        sides = {checkout: _measured(checkout.resolve(), options) for checkout in (options.before, options.after)}
        before, after = sides.values()
        rounds.append({name: (before[name], after[name]) for name in before})
        print(f"  round {number + 1}, load average {os.getloadavg()[0]:.1f}: {rounds[-1]}", flush=True)
    print(f"{platform.machine()} CPU, processor seconds; Python {platform.python_version()}; {date.today()}")
    training = f"{options.images} images of {options.image_size}, {options.epochs} epochs"
    what = "--overhead" if options.overhead else f"{options.architecture}, {training}"
    print(f"python benchmarks/before_after.py BEFORE AFTER: {what}, {options.rounds} rounds\n")
    print(f"{'':36}{'before':>10}{'after':>10}{'after / before':>16}")
    for name in rounds[0]:
        ratios = sorted(found[name][1] / found[name][0] for found in rounds)
        before, after = (statistics.median(found[name][side] for found in rounds) for side in (0, 1))
        spread = f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"{name:36}{before:>10.3f}{after:>10.3f}{statistics.median(ratios):>16.2f} {spread}")


def _measured(checkout: Path, options: argparse.Namespace) -> dict[str, float]:
    """Return processor seconds of a checkout by what they were spent on."""
    here, python = checkout / "benchmarks", checkout / ".venv" / "bin" / "python"
    words = [str(here / "overhead.py"), "start", "--repeats", "1"]
    if not options.overhead:
        cache = options.cache.resolve() / checkout.name
        words = ["-c", EPOCHS, str(options.root.resolve()), str(cache), options.category, options.architecture]
        words += map(str, (options.image_size, options.images, options.epochs))
    variables = {**os.environ, "PYTHONPATH": f"{here}:{checkout}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([python, *words], cwd=here, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{checkout}: ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    patterns = OVERHEAD if options.overhead else {f"an image of {options.architecture}": r"an image: ([\d.e-]+)"}
    return {name: float(re.search(pattern, done.stdout)[1]) for name, pattern in patterns.items()}


if __name__ == "__main__":
    main()
