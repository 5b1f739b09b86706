"""What a trial waits for before its first step: decoding once per machine, a warm start, memory of each process.

    MSAD_DATA=mvtec python benchmarks/data.py                    bottle's good images at 256 pixels
    python benchmarks/data.py --root mvtec --category bottle --output data.txt

Needs neither Ray nor MLflow. Four questions:

- cold: how many images per second are decoded and resized into the cache, by one process and by two with half of the
  images each; the files are dropped from the page cache before. Beside it what the usual loop pays in every epoch:
  Pillow and torchvision's `Resize` in a `DataLoader` with two workers, the page cache warm.
- epoch: the same images as batches of 8, float32 in [0, 1], from the cache's memory map and from that loader.
- warm: how long a new process, its modules imported, waits for a trial's data, and for the batches on the device.
- memory: what each of several processes on the same data adds. USS is its own alone, PSS its share of what is shared
  (both from /proc/self/smaps_rollup); beside it processes that keep a copy.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from msad.cluster.workers.job_worker import load_training_data
from msad.data_io.cache import load_images
from msad.data_io.splits import split_good_images
from msad.models.registry import build
from msad.training.batches import batches, make_batches
from msad.training.job_config import JobConfig

BATCH = 8
PARTS = ("cold", "epoch", "warm", "memory")
_SPAWN = multiprocessing.get_context("spawn")  # a fork would share this process's memory


def main() -> None:
    options = _options().parse_args()
    if not options.root:
        raise SystemExit("give --root, or set MSAD_DATA to a dataset's folder")
    lines: list[str] = []

    def say(line: str = "") -> None:
        print(line, flush=True)
        lines.append(line)

    job = JobConfig(category=options.category, architecture="multiscale", image_size=options.image_size)
    split = split_good_images(options.root, job.category, job.seed)
    paths = [*split.train_paths, *split.validation_paths]
    say(_machine())
    own_size = "×".join(map(str, Image.open(paths[0]).size))
    say(f"{job.category}: {len(paths)} good images of {own_size} to {job.image_size}")
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        measurements = {
            "cold": lambda: _cold(say, paths, job.image_size, cache, options.repeats),
            "epoch": lambda: _epochs(say, paths, job.image_size, cache / "epoch", options.repeats),
            "warm": lambda: _warm(say, job, options.root, cache / "trials", options.starts),
            "memory": lambda: _memory(say, job, options.root, cache / "trials", options.processes),
        }
        for part in options.parts:
            measurements[part]()
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=os.environ.get("MSAD_DATA"), help="by default $MSAD_DATA")
    parser.add_argument("--category", default="bottle")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--repeats", type=int, default=3, help="of decoding and of an epoch")
    parser.add_argument("--starts", type=int, default=7, help="processes that start warm, one after the other")
    parser.add_argument("--processes", type=int, default=4, help="processes on the same data at once")
    parser.add_argument("--output", type=Path, help="write what is printed to this file too")
    return parser


def _cold(say: Callable[[str], None], paths: Sequence[Path], size: int, cache: Path, repeats: int) -> None:
    ways = {
        "into the cache, 1 process": 1,
        "into the cache, 2 processes, half each": 2,
        "DataLoader, 2 workers, page cache warm": 0,
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for repeat in range(repeats):
        for name, count in ways.items():
            if not count:
                found[name].append(_both_clocks(lambda: _consume(_loader(paths, size))))
                continue
            _drop_from_page_cache(paths)
            parts = [(paths[index::count], size, cache / f"cold{count}-{repeat}") for index in range(count)]
            wall, processor = zip(*_at_once(_decode, parts), strict=True)
            found[name].append((max(wall), sum(processor)))
    say()
    say(f"{'cold, images/s':44}{'median':>10}{'highest':>9}{'runs':>6}{'processor ms per image':>25}")
    for name, clocks in found.items():
        wall, processor = zip(*clocks, strict=True)
        rates = [len(paths) / seconds for seconds in wall]
        per_image = 1e3 * statistics.median(processor) / len(paths)
        say(f"{name:44}{statistics.median(rates):10.1f}{max(rates):9.1f}{repeats:6}{per_image:25.1f}")


def _epochs(say: Callable[[str], None], paths: Sequence[Path], size: int, cache: Path, repeats: int) -> None:
    images_NHWC = load_images(paths, size, cache)
    ours, theirs = [], []
    for _ in range(repeats):
        ours.append(_both_clocks(lambda: _consume(batches(images_NHWC, torch.device("cpu"), BATCH))))
        theirs.append(_both_clocks(lambda: _consume(_loader(paths, size))))
    say()
    say(f"{'an epoch of batches, s':44}{'median':>10}{'lowest':>9}{'runs':>6}{'processor s':>14}{'times as long':>15}")
    first = statistics.median(wall for wall, _ in ours)
    for name, clocks in (("from the memory map", ours), ("DataLoader, 2 workers", theirs)):
        wall, processor = zip(*clocks, strict=True)
        median, busy = statistics.median(wall), statistics.median(processor)
        say(f"{name:44}{median:10.3f}{min(wall):9.3f}{repeats:6}{busy:14.3f}{median / first:15.1f}")


def _warm(say: Callable[[str], None], job: JobConfig, root: Path, cache: Path, starts: int) -> None:
    _at_once(_start, [(job, root, cache)])  # the first builds what the others find
    found = [_at_once(_start, [(job, root, cache)])[0] for _ in range(starts)]
    say()
    say(f"{'warm start, s':44}{'median':>10}{'lowest':>9}{'runs':>6}")
    device = "GPU" if torch.cuda.is_available() else "CPU"
    for place, name in enumerate(
        ("a trial's arrays, mapped", f"and its batches, on the {device}", "and one batch drawn")
    ):
        seconds = [times[place] for times in found]
        say(f"{name:44}{statistics.median(seconds):10.3f}{min(seconds):9.3f}{starts:6}")


def _memory(say: Callable[[str], None], job: JobConfig, root: Path, cache: Path, processes: int) -> None:
    data = load_training_data(job, root, cache)
    size = sum(array.nbytes for array in (data.train_NHWC, data.validation_NHWC, data.synthetic.images))
    say()
    title = f"memory added by each of {processes} processes, MiB"
    say(f"{title:44}{'USS':>10}{'PSS':>9}   of {size >> 20} MiB of images")
    for copy, name in ((False, "mapped, every pixel read, batches made"), (True, "a copy in each process")):
        barrier = _SPAWN.Manager().Barrier(processes)
        added = _at_once(_hold, [(job, root, cache, copy, barrier)] * processes)
        uss, pss = (statistics.median(part) / 1024 for part in zip(*added, strict=True))
        say(f"{name:44}{uss:10.1f}{pss:9.1f}")


def _at_once(work: Callable[..., Any], arguments: Sequence[tuple]) -> list[Any]:
    """Run a function in as many new processes at once, and return the results."""
    with _SPAWN.Pool(len(arguments)) as pool:
        pool.map(_ready, range(len(arguments)), chunksize=1)
        return pool.starmap(work, arguments, chunksize=1)


def _ready(_: int) -> None:
    time.sleep(0.5)  # so that each process takes one, and all have imported everything


def _decode(paths: Sequence[Path], size: int, cache: Path) -> tuple[float, float]:
    return _both_clocks(lambda: load_images(paths, size, cache))


def _start(job: JobConfig, root: Path, cache: Path) -> tuple[float, float, float]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.zeros(1, device=device)  # the driver's own start is not the data's
    model = build(job.architecture, **job.model).to(device)
    began = time.perf_counter()
    data = load_training_data(job, root, cache)
    mapped = time.perf_counter() - began
    made = make_batches(job, data, model, device)
    _wait()
    ready = time.perf_counter() - began
    generator = torch.Generator(device).manual_seed(0)
    made.draw(next(iter(made.stream([torch.arange(job.batch_size)]))), generator)
    _wait()
    return mapped, ready, time.perf_counter() - began


def _hold(job: JobConfig, root: Path, cache: Path, copy: bool, barrier: Any) -> tuple[int, int]:
    model = build(job.architecture, **job.model)
    np.ones(1 << 20, np.uint8).sum()
    before = _uss_and_pss()
    data = load_training_data(job, root, cache)
    made = make_batches(job, data, model, torch.device("cpu"))
    arrays = [data.train_NHWC, data.validation_NHWC, data.synthetic.images]
    kept = [np.array(array) if copy else array for array in arrays]
    checksum = sum(int(image.sum()) for array in kept for image in array)
    barrier.wait()
    after = _uss_and_pss()
    barrier.wait()
    assert checksum and len(made)
    return after[0] - before[0], after[1] - before[1]


def _uss_and_pss() -> tuple[int, int]:
    """Return KiB of memory that is this process's alone, and its share of all that it has."""
    fields = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    kib = {name: int(value.split()[0]) for name, value in fields.items()}
    return kib["Private_Clean"] + kib["Private_Dirty"], kib["Pss"]


class _Files(torch.utils.data.Dataset):
    """What the usual loop does: open, resize, to a tensor, every time anew."""

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        from torchvision import transforms

        self._paths = paths
        self._transform = transforms.Compose([transforms.Resize((size, size)), transforms.ToTensor()])

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self._transform(Image.open(self._paths[index]).convert("RGB"))


def _loader(paths: Sequence[Path], size: int) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(_Files(paths, size), batch_size=BATCH, num_workers=2)


def _consume(several: Any) -> None:
    for _ in several:
        pass


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _both_clocks(work: Callable[[], Any]) -> tuple[float, float]:
    """Return the seconds of the clock, and those of processors, of this process and those that it waited for."""
    before = os.times()
    seconds = _seconds(work)
    return seconds, sum(os.times()[:4]) - sum(before[:4])


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _drop_from_page_cache(paths: Sequence[Path]) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _machine() -> str:
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line for line in lines if line.startswith("model name")).partition(": ")[2]
    gpu = f"{torch.cuda.get_device_name()}; " if torch.cuda.is_available() else ""
    cores = len(os.sched_getaffinity(0))
    return (
        f"{gpu}{name}, {cores} cores, load {os.getloadavg()[0]:.1f}\n"
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"Pillow {Image.__version__}, numpy {np.__version__}"
    )


if __name__ == "__main__":
    main()
