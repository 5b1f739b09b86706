"""What each of this package's own kernels gains in a whole training step, beside its lines of code.

    python benchmarks/kernel_gains.py
    python benchmarks/kernel_gains.py --architectures multiscale --image-size 128 --rounds 9

A step is all that a job does with a batch: images drawn, augmented and corrupted (kept features for
`feature_pyramid`), losses, gradients, their clipping, and the optimiser. Steps with all kernels and without one of
them take turns; the ratio is the median over pairs of neighbours, beside its quartiles. Steps with all against steps
with all say what is noise. On a CPU processor seconds of one thread are compared, which others on the machine disturb
least, and on a GPU the seconds of steps that are not recorded: `benchmarks/kernels.py` measures recorded ones. Lines
are those with code.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import heading
import numpy as np
import torch

from msad.data_io.array_cache import default_cache_dir
from msad.models import kernels
from msad.models.kernels import kernel_check, native
from msad.models.registry import architecture, build
from msad.training.batches import ImageBatches
from msad.training.job_config import JobConfig
from msad.training.loop import computes_in_bfloat16
from msad.training.malloc import keep_freed_memory
from msad.training.training_data import TrainingData

# By the name that a warning has: sources in C and in Triton, and the Python that calls them.
SOURCES = {
    "batch normalisation and ReLU": (["norm_relu.c"], ["norm_relu_gpu.py"], ["norm_relu.py", "norm_relu_cpu.py"]),
    "SSIM": (["ssim.c"], [], ["ssim.py"]),
    "feature distances": (["feature_distance.c"], [], ["feature_distance.py"]),
    "enlarging": (["enlarge.c"], [], ["enlarge.py"]),
}
SHARED = ["native.py", "kernel_check.py", "element.h"]


def main() -> None:
    """Time steps by turns and print the table."""
    options = _options()
    keep_freed_memory()  # as every worker does
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(options.threads)
    if device.type == "cpu" and (reason := native.prepare(default_cache_dir())):
        raise SystemExit(f"no kernels in C: {reason}")
    columns = f"{'C':>4} {'Triton':>7} {'Python':>7} {'step, s':>8} {'without':>8} {'ratio':>7} {'quartiles':>12}"
    lines = [f"{'architecture':16} {'kernel':30} {columns}"]
    for name in options.architectures:
        step = _step(name, options, device)
        step()
        step()
        for kernel, with_all, without, (low, ratio, high) in _compare(step, options.rounds):
            sizes = "{:4} {:7} {:7}".format(*map(_lines, SOURCES.get(kernel, ((), (), ()))))
            figures = f"{with_all:8.3f} {without:8.3f} {ratio:6.3f}x {low:6.3f}-{high:.3f}"
            lines.append(f"{name:16} {kernel:30} {sizes} {figures}")
            print(lines[-1], flush=True)
    lines.append(f"lines that all share: {_lines(SHARED)} ({', '.join(SHARED)})")
    print()
    heading.tell(options, device, "\n".join(lines))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", nargs="+", default=["multiscale", "feature_pyramid"], metavar="NAME")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, help="by default the architecture's own")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="write the table here too")
    return parser.parse_args()


def _step(name: str, options: argparse.Namespace, device: torch.device) -> Callable[[], None]:
    """Return what takes a training step of an architecture with its defaults."""
    settings = architecture(name).training_defaults | {"image_size": options.image_size}
    if options.batch_size:
        settings["batch_size"] = options.batch_size
    job = dataclasses.replace(JobConfig(category="made_up", architecture=name, **settings), patience=0)
    model = build(name, **job.model).to(device, memory_format=torch.channels_last).train()
    weights = model.default_loss_weights
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (job.batch_size, options.image_size, options.image_size, 3), dtype=np.uint8)
    batches = ImageBatches(job, TrainingData(images, images[:0], None), model, device)
    generator, index_B = torch.Generator(device).manual_seed(0), torch.arange(job.batch_size)
    (images_BHWC,) = batches.stream([index_B])
    kept = None
    if model.has_frozen_encoder:
        clean_BCHW, corrupted_BCHW, mask_B1HW = batches.draw(images_BHWC, generator)
        clean = model.encode(clean_BCHW)
        model.adapt([clean])
        mask_B1HW = torch.nn.functional.adaptive_avg_pool2d(mask_B1HW, clean[0].shape[-2:])
        kept = clean, model.encode(corrupted_BCHW), mask_B1HW
    optimizer = torch.optim.AdamW(model.parameters(), lr=job.learning_rate, fused=True)
    mixed = computes_in_bfloat16(device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        batch = kept or batches.draw(images_BHWC, generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            terms = model.losses(*batch, terms=weights)
        sum(weights[term] * value for term, value in terms.items()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), job.gradient_clip or 1.0)
        optimizer.step()

    return step


def _compare(step: Callable[[], None], rounds: int) -> Iterator[tuple[str, float, float, list[float]]]:
    """Yield each kernel of a step, all and none: seconds of a step with all, without, and the quartiles of ratios."""
    names = [name for name in SOURCES if name in {known[0] for known in kernel_check._agreed}]
    left_out = {name: {name} for name in names} | {"all of them": set(names), "none of them": set()}
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in left_out}
    for number in range(rounds):
        for name, without in left_out.items():
            sides = [set(), without] if number % 2 else [without, set()]
            seconds = [_seconds(step, side) for side in sides]
            pairs[name].append(tuple(seconds if number % 2 else reversed(seconds)))
    for name, measured in pairs.items():
        with_all, without = (statistics.median(side) for side in zip(*measured, strict=True))
        yield name, with_all, without, statistics.quantiles([later / sooner for sooner, later in measured], n=4)
    kernel_check.forget()


def _seconds(step: Callable[[], None], left_out: set[str]) -> float:
    on_gpu, clock = torch.cuda.is_available(), time.perf_counter if torch.cuda.is_available() else time.process_time
    kernel_check.left_to_torch |= left_out
    try:
        began = clock()
        step()
        if on_gpu:
            torch.cuda.synchronize()
        return clock() - began
    finally:
        kernel_check.left_to_torch.clear()


def _lines(files: list[str]) -> int:
    """Return how many lines of some of the kernels' files hold code, not a comment alone."""
    folder = Path(kernels.__file__).parent
    texts = [line.strip() for file in files for line in (folder / file).read_text().splitlines()]
    return sum(bool(line) and not line.startswith(("# ", "//", "/*", "*")) for line in texts)


if __name__ == "__main__":
    main()
