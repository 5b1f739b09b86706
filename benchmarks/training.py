"""Training speed: ours, the loop of the published autoencoder project, anomalib's engine, and what the device could do.

    python benchmarks/training.py --root mvtec --category bottle
    python benchmarks/training.py --root mvtec --category bottle --architecture feature_pyramid --epochs 40

All sides train in one run, by turns, `--rounds` times; the table holds medians of images per second, the ratio to the
reference loop is the median of each round's ratio. The sides:

- ours: `msad.training.loop.fit`, with all that a job does in an epoch (augmentation, corruption, all loss terms).
- ours, torch alone: the same without this package's own kernels, in C on a CPU and in Triton on a GPU.
- ours, same arithmetic: the network and the loss of the reference, in single precision, without augmentation or
  corruption.
- reference: every image decoded and resized in every epoch by two loader workers, batches of 8, Adam, L1, single
  precision, the plain multi-scale U-Net; rebuilt from the published recipe.
- reference, decoding / network: its loader without a network, and its network on images that lie ready; the slower of
  the two dominates.
- anomalib: its engine and its folder data module with GANomaly, once with about as many parameters as `multiscale` and
  once with about as much arithmetic, which the column of GFLOP tells: of one image, forward.
- limit: the job's own convolutions, forward and backward, each measured alone at its size and precision, and what
  normalisation with its activation must read and write, at the measured rate of a copy. All else is taken as free, so
  nothing that calls these convolutions can be faster. Once for ours and once for the same arithmetic.

`--recorded` times the same job with and without recorded steps (GPUs only). `--to-score N` trains the reference for N
epochs, then our job, of `--epochs`, until it separates the same synthetic defects as well; validation itself, the same
for both, is not counted. No Ray, no MLflow.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import heading
import numpy as np
import torch
from kernels import torch_alone
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from training_limit import limit

from msad.cluster.workers.job_worker import load_training_data
from msad.data_io.array_cache import default_cache_dir
from msad.data_io.splits import split_good_images
from msad.models.base import AnomalyModel
from msad.models.false_regions import FalseRegions
from msad.models.kernels import native
from msad.models.registry import architecture, build
from msad.models.scoring import Choice, Reading, Scorer, Scoring
from msad.models.thresholds import FalseAlarms
from msad.training import loop, products
from msad.training.batches import make_batches
from msad.training.job_config import JobConfig
from msad.training.malloc import keep_freed_memory
from msad.training.training_data import TrainingData
from msad.training.validation import Thresholds, figures, validate

REFERENCE = {"skip": "concat", "first_skip": 0, "skip_dropout": 0.0}  # the plain U-Net: 1,927,075 parameters
GANOMALY = {"parameters": 5, "arithmetic": 60}  # features: 1,865,210 parameters, and 15.4 GFLOP


def main() -> None:
    """Time all sides by turns and print the table."""
    options = _options()
    keep_freed_memory()  # as every worker does, and what follows
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and (reason := native.prepare(options.cache or default_cache_dir())):
        print(f"without the kernels in C: {reason}", flush=True)
    torch.set_num_threads(options.threads)
    job = JobConfig(
        category=options.category,
        architecture=options.architecture,
        **({"image_size": options.image_size} | architecture(options.architecture).training_defaults),
    )
    job = dataclasses.replace(job, epochs=options.epochs, evaluate_every=1)  # each epoch tells its seconds
    data = load_training_data(job, options.root, options.cache)
    if options.images:
        data = dataclasses.replace(data, train_NHWC=data.train_NHWC[: options.images])
    plain = job.with_parameters(
        {"loss_weights/l1": 1.0, "corruption/probability": 0.0, "augmentation/kind": "none", "batch_size": 8}
        | {f"model/{name}": value for name, value in REFERENCE.items()}
    )
    plain = dataclasses.replace(plain, gradient_clip=0.0, schedule="constant")
    paths = split_good_images(options.originals or options.root, options.category, job.seed).train_paths
    if options.to_score:
        heading.tell(options, device, _time_to_score(job, data, paths, options.to_score, device))
        return
    # What is compared runs one after the other: the machine may be faster or slower a minute later.
    sides: dict[str, Callable[[], float]] = {
        "ours": lambda: _ours(job, data, device),
        "limit": lambda: limit(job, data, device, loop.computes_in_bfloat16(device)),
    }
    if options.recorded:
        sides["ours, not recorded"] = lambda: _ours(job, data, device, recorded=False)
    sides["ours, torch alone"] = lambda: _ours(job, data, device, kernels=False)
    if options.architecture == "multiscale":
        sides["limit, same arithmetic"] = lambda: limit(plain, data, device, False)
        sides["ours, same arithmetic"] = lambda: _ours(plain, data, device, mixed=False)
    own = [name for name in sides if name.startswith("ours")]
    gflop = dict.fromkeys(own, _gflop(build(job.architecture, **job.model), job.image_size))
    reference = functools.partial(_reference, paths, job.image_size, options.reference_images, device)
    sides |= {
        "reference": reference,
        "reference, decoding": functools.partial(reference, trains=False),
        "reference, network": functools.partial(reference, decodes=False),
    }
    gflop |= dict.fromkeys(
        ("ours, same arithmetic", "reference", "reference, network"),
        _gflop(build("multiscale", **REFERENCE), job.image_size),
    )
    if options.anomalib:
        for alike, features in GANOMALY.items():
            name, originals = f"GANomaly, like {alike}", options.originals or options.root
            sides[name] = functools.partial(_anomalib, originals, options.category, device, features)
            gflop[name] = _gflop(_ganomaly(features).model, job.image_size)

    rounds: list[dict[str, float]] = []
    for number in range(options.rounds):
        rounds.append({})
        for name, side in sides.items():
            rounds[-1][name] = side()
            print(f"  round {number + 1}, {name}: {rounds[-1][name]:.1f} images/s", flush=True)
    heading.tell(options, device, _table(rounds, gflop))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="dataset in the MVTec AD layout")
    parser.add_argument("--originals", type=Path, help="what the reference decodes, where --root holds smaller copies")
    parser.add_argument("--category", required=True)
    parser.add_argument("--architecture", default="multiscale")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--images", type=int, help="train on the first ones only")
    parser.add_argument("--epochs", type=int, default=4, help="of ours, a round")
    parser.add_argument("--reference-images", type=int, default=64, help="of the reference, a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--recorded", action="store_true")
    parser.add_argument("--to-score", type=int, metavar="N", help="time to the score of N epochs of the reference")
    parser.add_argument("--anomalib", action="store_true")
    parser.add_argument("--cache", type=Path, help="of decoded images; default: msad's own")
    parser.add_argument("--output", type=Path, help="write the table here too")
    return parser.parse_args()


def _ours(
    job: JobConfig,
    data: TrainingData,
    device: torch.device,
    *,
    mixed: bool | None = None,
    recorded: bool = True,
    kernels: bool = True,
) -> float:
    """Images per second of a job's epochs, without any validation and without its first report, which warms up."""
    seconds: list[float] = []

    def report(metrics: dict[str, float], _state: dict[str, Any]) -> None:
        seconds.append(metrics["epoch_seconds"])

    changes: dict[str, Any] = {}
    if mixed is not None:
        changes["computes_in_bfloat16"] = lambda _device: mixed
    if not recorded:
        changes["ReplayedStep"] = lambda step, _parameters, _generator: step
    validation = {"validate": lambda *_: _CHOICE, "set_thresholds": lambda *_: _THRESHOLDS}
    patched = mock.patch.dict(vars(loop), changes), mock.patch.dict(vars(products), validation)
    with patched[0], patched[1], contextlib.nullcontext() if kernels else torch_alone():
        loop.fit(job, data, device=device, report=report, get_checkpoint=lambda: None)
    images = len(make_batches(job, data, build(job.architecture, **job.model).to(device), device))
    return images / statistics.median(seconds[1:] or seconds)


# What `_ours` has in the place of a validation's.
_NOTHING = {"image_auroc": 0.0, "pixel_ap": 0.0, "prevalence": 0.0, "images": 1, "weight": 1.0}
_CHOICE = Choice(Scorer(Scoring({"l1": 1.0}), {}), (Reading(0.0, {"none": _NOTHING}),) * 2)
_THRESHOLDS = Thresholds(
    threshold=0.0,
    false_alarms=FalseAlarms(0.01, 0, 1.0, 1.0),
    pixel_threshold=0.0,
    false_regions=FalseRegions(0.1, 0, 0, 1.0),
    good_scores=np.empty(0),
)


class _Photographs(torch.utils.data.Dataset):
    """Decodes and resizes at every access."""

    def __init__(self, paths: list[Path], size: int, count: int) -> None:
        self.paths, self.size, self.count = paths, size, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index % len(self.paths)]) as image:
            small = image.convert("RGB").resize((self.size, self.size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(small)).permute(2, 0, 1).float().div_(255)


def _reference(
    paths: list[Path], size: int, count: int, device: torch.device, *, decodes: bool = True, trains: bool = True
) -> float:
    """Images per second of the reference loop, after its workers have started and a step has warmed up."""
    model = build("multiscale", **REFERENCE).to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    began, done = 0.0, 0
    batches = _decoded(paths, size, count + 8, device, drop_last=True)
    for image_BCHW in batches if decodes else [torch.rand(8, 3, size, size)] * (count // 8 + 1):
        if trains:
            _reference_step(model, optimizer, image_BCHW.to(device))
        began, done = (began, done + len(image_BCHW)) if began else (time.perf_counter(), 0)
    return done / (time.perf_counter() - began)


def _decoded(
    paths: list[Path], size: int, count: int, device: torch.device, *, drop_last: bool = False
) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(
        _Photographs(paths, size, count),
        batch_size=8,
        shuffle=True,
        num_workers=2,
        pin_memory=device.type == "cuda",
        drop_last=drop_last,
    )


def _reference_step(model: AnomalyModel, optimizer: torch.optim.Optimizer, image_BCHW: Tensor) -> None:
    optimizer.zero_grad()
    loss = F.l1_loss(model.reconstruct(image_BCHW), image_BCHW)
    loss.backward()
    optimizer.step()
    loss.item()  # the recipe adds up the loss of every step


def _time_to_score(job: JobConfig, data: TrainingData, paths: list[Path], epochs: int, device: torch.device) -> str:
    """Train the reference, then ours until its validation is as good; return both in seconds of training."""
    paths = paths[: len(data.train_NHWC)]
    model = build("multiscale", **REFERENCE).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batches = make_batches(job, data, model, device)
    seconds, goal, theirs = 0.0, -math.inf, 0.0
    for epoch in range(1, epochs + 1):
        began = time.perf_counter()
        model.train()
        for image_BCHW in _decoded(paths, job.image_size, len(paths), device):
            _reference_step(model, optimizer, image_BCHW.to(device))
        seconds += time.perf_counter() - began
        score = figures(validate(model, batches, data, job).validation)["validation_score"]
        print(f"  reference, epoch {epoch}: {score:.3f} after {seconds:.1f} s", flush=True)
        if score > goal:
            goal, theirs = score, seconds

    ours: list[tuple[int, float, float]] = [(0, -math.inf, 0.0)]

    def report(metrics: dict[str, float], _state: dict[str, Any]) -> None:
        epoch, score = int(metrics["epoch"]), metrics["validation_score"]
        ours.append((epoch, score, ours[-1][2] + metrics["epoch_seconds"] * (epoch - ours[-1][0])))
        print(f"  ours, epoch {epoch}: {score:.3f} after {ours[-1][2]:.1f} s", flush=True)
        if score >= goal:
            raise _Reached

    with contextlib.suppress(_Reached):
        loop.fit(job, data, device=device, report=report, get_checkpoint=lambda: None)
    epoch, score, took = ours[-1]
    lines = [f"{len(paths)} images; the reference's best of {epochs} epochs: {goal:.3f} after {theirs:.1f} s"]
    if score < goal:
        best = max(score for _, score, _ in ours)
        return f"{lines[0]}\nours did not reach it in {epoch} epochs, {took:.1f} s: {best:.3f}"
    lines.append(f"ours: {score:.3f} after {took:.1f} s, {epoch} epochs: {theirs / took:.2f} times as fast")
    return "\n".join(lines)


class _Reached(Exception):
    """Our job separates the defects as well as the reference did."""


def _ganomaly(features: int) -> Any:
    from anomalib.models import Ganomaly

    return Ganomaly(batch_size=8, n_features=features, evaluator=False, visualizer=False)


def _anomalib(root: Path, category: str, device: torch.device, features: int) -> float:
    """Images per second between the ends of the engine's training steps, the first ones left out."""
    import lightning
    from anomalib.data import Folder
    from anomalib.engine import Engine

    ends: list[float] = []

    class Clock(lightning.pytorch.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            if device.type == "cuda":
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    good = root / category / "train" / "good"
    folder = Folder(name=category, root=good.parent, normal_dir="good", train_batch_size=8, num_workers=2)
    model = _ganomaly(features)
    with tempfile.TemporaryDirectory() as scratch:
        engine = Engine(
            default_root_dir=scratch,
            max_steps=12,
            accelerator="gpu" if device.type == "cuda" else "cpu",
            callbacks=[Clock()],
            limit_val_batches=0,
            logger=False,
            enable_progress_bar=False,
        )
        engine.fit(model=model, datamodule=folder)
    return 8 * (len(ends) - 4) / (ends[-1] - ends[3])


def _gflop(model: nn.Module, size: int) -> float:
    """Return the arithmetic of one image's way through a network, backbone included."""
    image_BCHW = torch.rand(1, 3, size, size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        if isinstance(model, AnomalyModel):
            model.eval().anomaly_maps(image_BCHW)
        else:
            model.train()(image_BCHW)
    return counter.get_total_flops() / 1e9


def _table(rounds: list[dict[str, float]], gflop: dict[str, float]) -> str:
    lines = [f"{'':24}{'images/s':>10}{'to reference':>14}{'of the limit':>14}{'GFLOP':>8}"]
    for name in rounds[0]:
        rate, ratio, share = (
            statistics.median(r[name] / (r[other] if other else 1) for r in rounds)
            for other in ("", "reference", "limit")
        )
        arithmetic = f"{gflop[name]:>8.2f}" if name in gflop else ""
        lines.append(f"{name:24}{rate:>10.1f}{ratio:>13.2f}x{share:>14.0%}{arithmetic}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
