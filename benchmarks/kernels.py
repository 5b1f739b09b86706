"""This package's own kernels beside torch's operators: in C on a CPU, in Triton on a GPU, each forward and backward.

    python benchmarks/kernels.py
    python benchmarks/kernels.py --image-size 128 --rounds 20

The sizes are those of a training step of `multiscale`, and on a CPU, where alone they are, of `feature_pyramid`.
Both sides run by turns; the table holds medians, the ratio is the median of each round's ratio. On a GPU both are
recorded as CUDA graphs, as a training step is: the host's time does not count. What differs is the largest difference
of results and gradients, as a share of the largest value.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import heading
import torch
from torch import Tensor

from msad.data_io.array_cache import default_cache_dir
from msad.models.kernels import kernel_check, native
from msad.models.kernels.enlarge import doubled
from msad.models.kernels.feature_distance import feature_distances
from msad.models.kernels.norm_relu import NormReLU
from msad.models.similarity import ssim_map
from msad.training.malloc import keep_freed_memory

Run = Callable[[], tuple[Tensor, ...]]


def main() -> None:
    """Time every operation by turns and print the table."""
    options = _options()
    keep_freed_memory()  # as every worker does
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(options.threads)
    if device.type == "cpu" and (reason := native.prepare(default_cache_dir())):
        raise SystemExit(f"no kernels in C: {reason}")
    lines = [f"{'operation':34} {'torch, ms':>10} {'ours, ms':>10} {'ratio':>7}  differ by"]
    for name, run in _operations(options.batch, options.image_size, device):
        lines.append(_compare(name, run, device, options.rounds))
        print(lines[-1], flush=True)
    print()
    heading.tell(options, device, "\n".join(lines))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="write the table here too")
    return parser.parse_args()


def _operations(batch: int, size: int, device: torch.device) -> Iterator[tuple[str, Run]]:
    """Yield each operation's name and a function that runs it forward and backward."""
    generator = torch.Generator().manual_seed(0)
    layers = {channels: NormReLU(channels).to(device) for channels in (32, 64, 128)}

    def feature(channels: int, side: int) -> Tensor:
        drawn = torch.randn(batch, channels, side, side, generator=generator)
        return drawn.to(device, torch.bfloat16, memory_format=torch.channels_last).requires_grad_()

    def both_ways(function: Callable[..., Tensor], *given: Tensor) -> Run:
        wanted = [value for value in given if value.requires_grad]
        made = function(*given)
        drawn = torch.randn(made.shape, generator=generator)
        back = torch.empty_like(made, requires_grad=False).copy_(drawn)  # laid out as the result is

        def run() -> tuple[Tensor, ...]:
            made = function(*given)
            return made.detach(), *torch.autograd.grad(made, wanted, back)

        return run

    for channels, side in ((32, size), (64, size // 2), (128, size // 4)):
        yield f"normalisation, ReLU, {channels} × {side} × {side}", both_ways(layers[channels], feature(channels, side))
    if device.type != "cpu":
        return
    first, second = (torch.rand(batch, 3, size, size, generator=generator).to(device) for _ in range(2))
    first.requires_grad_()
    yield f"SSIM, 3 × {size} × {size}", both_ways(ssim_map, first, second)
    for channels, side in ((24, size // 4), (40, size // 8)):
        made, wanted = feature(channels, side), feature(channels, side).detach().float()
        shape = f"{channels} × {side} × {side}"
        yield (
            f"feature distances, {shape}",
            both_ways(lambda *pair: torch.stack(feature_distances(*pair)), made, wanted),
        )
    for channels, side in ((48, size // 8), (96, size // 16)):
        yield f"doubling, {channels} × {side} × {side}", both_ways(doubled, feature(channels, side))


def _compare(name: str, run: Run, device: torch.device, rounds: int) -> str:
    timers = []
    for side in (torch_alone(), contextlib.nullcontext()):
        with side:
            timers.append((_recorded if device.type == "cuda" else _timed)(run))
    pairs = [[timer() for timer in timers] for _ in range(rounds)]
    theirs, ours = (1000 * statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(before / after for before, after in pairs)
    with torch_alone():
        wanted = run()
    differs = max(
        ((found.double() - right.double()).abs().max() / right.double().abs().max()).item()
        for found, right in zip(run(), wanted, strict=True)
    )
    return f"{name:34} {theirs:10.3f} {ours:10.3f} {ratio:6.2f}x  {differs:.0e}"


@contextlib.contextmanager
def torch_alone() -> Iterator[None]:
    """Leave all to torch's operators inside."""
    with mock.patch.object(kernel_check, "left_to_torch", set(kernel_check._trials)):
        yield


def _timed(run: Run) -> Callable[[], float]:
    """Return what runs it a few times, on the side that is set up now, and tells its seconds."""
    left = kernel_check.left_to_torch

    def seconds() -> float:
        with mock.patch.object(kernel_check, "left_to_torch", left):
            began = time.perf_counter()
            for _ in range(3):
                run()
            return (time.perf_counter() - began) / 3

    seconds()
    return seconds


def _recorded(run: Run) -> Callable[[], float]:
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()

    def seconds() -> float:
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(20):
            graph.replay()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 20_000

    return seconds


if __name__ == "__main__":
    main()
