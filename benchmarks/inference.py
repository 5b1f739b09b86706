"""Latency of one image and throughput of 32 of a bundle: in the program and exported, with pre-processing and without.

    python benchmarks/inference.py                                   whatever device there is
    python benchmarks/inference.py --architectures multiscale --seconds 60 --output inference.txt

Needs neither Ray nor MLflow. Weights are random, because arithmetic takes as long with any; a frozen backbone has its
own where the package that brings them is installed. The scoring is the costliest one that a search may choose: all
maps, smoothed, calibrated by position, the mean of the highest hundredth. What is compared takes turns, so that a
machine that slows down slows all of it. "arrays" are uint8 images at the model's size, "photographs" are 900×900 as
MVTec AD's; both go in as numpy arrays and come out as scores and maps in the host's memory at the images' own size.
"files" are PNGs of such photographs, read from the page cache. "scoring" is network, maps and scores alone, the images
as float32 on the device and the results left there.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from msad.bundle.bundles import Bundle
from msad.bundle.export import export
from msad.bundle.images import to_tensor
from msad.bundle.runtimes import Run, in_onnxruntime, in_torch
from msad.data_io.decode import decode, resize
from msad.errors import MsadError
from msad.models.backbones import untrained
from msad.models.errors import ModelError
from msad.models.registry import build
from msad.models.scorer import Scorer, Scoring, fit_scorer
from msad.training.job_config import JobConfig
from msad.training.malloc import keep_freed_memory

OWN_SIZE = 900  # pixels of a photograph's side
GOALS = {1: "3 ms", 32: "2,000 images/s"}  # on one H200
Work = Callable[[], object]


@dataclass
class Arm:
    """One way to score a batch: what it is called, what is timed, and how far its results are from the bundle's."""

    name: str
    work: Work
    difference: str = ""


def main() -> None:
    options = _options().parse_args()
    keep_freed_memory()  # as `msad predict` does
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    torch.set_num_threads(options.threads or len(os.sched_getaffinity(0)))
    lines: list[str] = []

    def say(line: str = "") -> None:
        print(line, flush=True)
        lines.append(line)

    say(_machine(device))
    for name in options.architectures:
        try:
            bundle = random_bundle(name, options.image_size, device)
        except ModelError as error:
            say(f"\n{name}: left out: {error}")
            continue
        with tempfile.TemporaryDirectory() as folder:
            files = _files(Path(folder), max(options.batches))
            exported = [] if options.no_export else list(_exported(bundle, Path(folder), files[:2]))
            for batch in options.batches:
                arms = list(_arms(bundle, files[:batch], exported, compile_too=options.compile))
                until = time.perf_counter() + options.seconds / len(options.batches)
                _report(say, f"{name}, batch {batch}", batch, arms, measure(arms, until, options.repeats))
                del arms
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", nargs="+", default=["multiscale", "feature_pyramid"], metavar="NAME")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32], metavar="N")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--device", help="cpu, cuda; by default the GPU if there is one")
    parser.add_argument("--threads", type=int, help="of torch and onnxruntime; by default the cores of this process")
    parser.add_argument(
        "--seconds", type=float, default=90, help="for each architecture, after it is compiled and exported"
    )
    parser.add_argument("--repeats", type=int, default=50, help="rounds at most")
    parser.add_argument("--no-export", action="store_true", help="leave out ONNX and .pt2")
    parser.add_argument(
        "--compile", action="store_true", help="on a GPU torch.compile too; takes a minute for each batch size"
    )
    parser.add_argument("--output", type=Path, help="write what is printed to this file too")
    return parser


def random_bundle(architecture: str, size: int, device: torch.device) -> Bundle:
    """Return a bundle with random weights whose statistics are those of its maps on noisy images."""
    torch.manual_seed(0)
    job = JobConfig(category="made_up", architecture=architecture, image_size=size)
    try:
        model = build(architecture)
    except ModelError:
        with untrained():
            model = build(architecture)
    model.eval().to(device, memory_format=torch.channels_last)
    photographs = np.stack([resize(photograph(seed), size) for seed in range(4)])
    image_BCHW = to_tensor(photographs, device)
    model.adapt([model.encode(image_BCHW)])
    maps = model.anomaly_maps(image_BCHW)
    scoring = Scoring(dict.fromkeys(maps, 1.0), 4 * size / 256, "top1", "position")
    return Bundle(model, fit_scorer(scoring, maps), 1.0, job)


def photograph(seed: int, size: int = OWN_SIZE) -> np.ndarray:
    """Return uint8 size×size×3: soft shapes under a camera's noise, which as a PNG is about as large as a real one."""
    rng = np.random.default_rng(seed)
    soft = Image.fromarray(rng.integers(40, 216, (12, 12, 3), dtype=np.uint8)).resize(
        (size, size), Image.Resampling.BICUBIC
    )
    return (np.asarray(soft) + rng.normal(0, 2, (size, size, 3))).clip(0, 255).astype(np.uint8)


def _files(folder: Path, count: int) -> list[Path]:
    files = [folder / f"{number:02}.png" for number in range(count)]
    for seed, file in enumerate(files):
        Image.fromarray(photograph(seed)).save(file)
    return files


def _arms(bundle: Bundle, files: list[Path], exported: list[tuple[str, Run]], compile_too: bool) -> Iterator[Arm]:
    """Yield all ways to score a batch, the one that the others are compared with first."""
    size, batch = bundle.job.image_size, len(files)
    own = np.stack([decode(file) for file in files])
    small = np.stack([resize(image, size) for image in own])
    image_BCHW = to_tensor(small, bundle.device)

    yield Arm("scoring, plain", lambda: plainly(bundle, image_BCHW))
    yield from _other_ways(bundle, image_BCHW, compile_too)
    yield Arm("Bundle.predict, arrays", lambda: bundle.predict(small, batch_size=batch))
    yield Arm("Bundle.predict, photographs", lambda: bundle.predict(own, batch_size=batch))
    yield Arm("Bundle.predict, files", lambda: bundle.predict(files, batch_size=batch))
    yield Arm("decode and resize alone, one thread", lambda: [resize(decode(file), size) for file in files])
    expected = bundle.predict(small, batch_size=batch)
    expected = np.stack([one.anomaly_map for one in expected]), np.array([one.score for one in expected])
    for name, run in exported:
        score_B, _, map_BHW, _ = run(small)
        yield Arm(f"{name} on the CPU, arrays", lambda run=run: run(small), _difference((map_BHW, score_B), expected))
        yield Arm(f"{name} on the CPU, photographs", lambda run=run: run(own))


@torch.inference_mode()
def plainly(bundle: Bundle, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Score without any recording: every kernel is named by the host."""
    return bundle.scorer(bundle.model.anomaly_maps(image_BCHW))


def _other_ways(bundle: Bundle, image_BCHW: Tensor, compile_too: bool) -> Iterator[Arm]:
    """Yield what else torch offers for the same scoring, on a GPU recorded or compiled as well."""
    device, reference = image_BCHW.device, plainly(bundle, image_BCHW)

    def arm(name: str, score: Callable[[], tuple[Tensor, Tensor]]) -> Arm:
        for _ in range(3 if device.type == "cuda" else 1):
            result = score()
        return Arm(name, score, _difference(result, reference))

    plain_layout = copy.copy(bundle)
    plain_layout.model = copy.deepcopy(bundle.model).to(memory_format=torch.contiguous_format)
    contiguous_BCHW = image_BCHW.contiguous()
    yield arm("scoring, channels first", lambda: plainly(plain_layout, contiguous_BCHW))
    types = (torch.bfloat16, torch.float16) if device.type == "cuda" else (torch.bfloat16,)
    if device.type == "cuda":
        yield arm("scoring, Bundle.score_batch", lambda: bundle.score_batch(image_BCHW))
    for kind in types:
        yield arm(f"scoring, {str(kind).removeprefix('torch.')}", _mixed(bundle, image_BCHW, kind))
    if device.type == "cuda":
        yield arm("scoring, no TF32", _without_tf32(bundle, image_BCHW))
        for kind in types:
            yield arm(f"scoring, {str(kind).removeprefix('torch.')} graph", _recorded(_mixed(bundle, image_BCHW, kind)))
        if compile_too:
            try:
                compiled = torch.compile(lambda image: bundle.scorer(bundle.model.anomaly_maps(image)), dynamic=False)
                yield arm("scoring, compiled", torch.inference_mode()(lambda: compiled(image_BCHW)))
                yield arm("scoring, compiled graph", _recorded(torch.inference_mode()(lambda: compiled(image_BCHW))))
            except Exception as error:  # a compiler may fail in any way, and the rest is worth knowing
                print(f"(not compiled: {type(error).__name__}: {str(error).splitlines()[0][:100]})", flush=True)


def _mixed(bundle: Bundle, image_BCHW: Tensor, kind: torch.dtype) -> Callable[[], tuple[Tensor, Tensor]]:
    def score() -> tuple[Tensor, Tensor]:
        with torch.autocast(image_BCHW.device.type, kind, cache_enabled=False):
            return plainly(bundle, image_BCHW)

    return score


def _without_tf32(bundle: Bundle, image_BCHW: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
    def score() -> tuple[Tensor, Tensor]:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return plainly(bundle, image_BCHW)

    return score


def _recorded(score: Callable[[], tuple[Tensor, Tensor]]) -> Callable[[], tuple[Tensor, Tensor]]:
    """Return the replay of a CUDA graph of `score`."""
    for _ in range(3):
        score()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = score()

    def replay() -> tuple[Tensor, Tensor]:
        graph.replay()
        return results

    return replay


def _exported(bundle: Bundle, folder: Path, check_on: Sequence[Path]) -> Iterator[tuple[str, Run]]:
    """Yield what runs the files that `msad export` writes, on the CPU."""
    host = copy.copy(bundle)
    host.model = copy.deepcopy(bundle.model).cpu()
    host.scorer = Scorer.from_state(bundle.scorer.scoring, bundle.scorer.state())
    in_onnx = partial(in_onnxruntime, threads=torch.get_num_threads())
    for name, load in (("detector.onnx", in_onnx), ("detector.pt2", in_torch)):
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                export(host, folder / name, check_on)
                run, _ = load((folder / name).read_bytes())
            yield name.partition(".")[2], run
        except (ImportError, MsadError) as error:
            print(f"({name} left out: {error})", flush=True)


def measure(arms: list[Arm], until: float, repeats: int) -> list[list[tuple[float, float]]]:
    """Run the arms in turns until the time is up, twice at least; return each run's clock and processor seconds."""
    times: list[list[tuple[float, float]]] = [[] for _ in arms]
    for arm in arms:
        for _ in range(3 if torch.cuda.is_available() else 1):
            arm.work()
    for round_ in range(repeats):
        if round_ >= 2 and time.perf_counter() > until:
            break
        for arm, seconds in zip(arms, times, strict=True):
            _wait()
            began, worked = time.perf_counter(), time.process_time()
            arm.work()
            _wait()
            seconds.append((time.perf_counter() - began, time.process_time() - worked))
    return times


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _report(
    say: Callable[[str], None], title: str, batch: int, arms: list[Arm], times: list[list[tuple[float, float]]]
) -> None:
    say()
    say(
        f"{title:36}{'median ms':>10}{'lowest':>9}{'images/s':>10}{'processor ms':>14}{'runs':>6}{'× plain':>9}"
        "  map and score off by"
    )
    plain = statistics.median(wall for wall, _ in times[0])
    for arm, clocks in zip(arms, times, strict=True):
        wall, processor = zip(*clocks, strict=True)
        median, busy = statistics.median(wall), statistics.median(processor)
        say(
            f"{arm.name:36}{1e3 * median:10.2f}{1e3 * min(wall):9.2f}{batch / median:10,.0f}{1e3 * busy:14.2f}"
            f"{len(wall):6}{plain / median:9.2f}  {arm.difference}".rstrip()
        )


def _difference(found: tuple, expected: tuple) -> str:
    """Return the largest differences of maps and scores, as shares of the range of the expected maps."""
    maps, scores = (
        [np.squeeze(np.asarray(torch.as_tensor(part).float().cpu())) for part in pair]
        for pair in zip(found, expected, strict=True)
    )
    spread = float(maps[1].max() - maps[1].min())
    return " ".join(f"{np.abs(one - other).max() / spread:.0e}" for one, other in (maps, scores))


def _machine(device: torch.device) -> str:
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        name = models[0].partition(": ")[2] if models else name
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"
    with contextlib.suppress(ImportError):
        import onnxruntime

        versions += f", onnxruntime {onnxruntime.__version__}"
    gpu = f"{torch.cuda.get_device_name(device)}; " if device.type == "cuda" else ""
    return (
        f"{gpu}{name}, {cores} cores, load {load:.1f}; {torch.get_num_threads()} threads\n{versions}\n"
        f"goals on one H200: {', '.join(f'{goal} at batch {batch}' for batch, goal in GOALS.items())}; "
        "differences are shares of the maps' range"
    )


if __name__ == "__main__":
    main()
