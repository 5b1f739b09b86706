"""Many equal trials on one device: one at a time, packed as processes, and trained together as one batched model.

    python benchmarks/packing.py                                  16 trials of each architecture of `TRIALS`
    python benchmarks/packing.py --architectures feature_pyramid --processes 4,8,16 --steps 200
    python benchmarks/packing.py --mps                            processes also under NVIDIA's Multi-Process Service
    python benchmarks/packing.py --trials 3 --steps 4 --repeats 1 --images 24 --image-size 64 --processes 2   to try it

The trials are those of one study: they differ in learning rate and loss weights and share seed and images, which are
cut from a photograph of scikit-image's (CC0). A trial is `--steps` steps and one validation, by
`msad.training.loop.fit` in processes that are warm; `together` trains all of them in one process, `torch.func.vmap`
over stacked parameters, on the same batches, drawn once. Seconds are medians; what starting and warming up costs stands
beside them, not in them. GiB are those of all processes together, without their CUDA contexts. It needs neither Ray nor
MLflow. Without the package of `feature_pyramid`'s backbone, an untrained ResNet-18 stands in.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from msad.data_io.array_cache import cached_arrays
from msad.data_io.photographs import cut_texture, load_photograph, load_textures
from msad.errors import first_line
from msad.models.backbones import untrained
from msad.models.registry import architecture, build
from msad.models.synthesis.synthetic_defects import SyntheticSet, make_synthetic_defects
from msad.training.batches import make_batches
from msad.training.cuda_graphs import ReplayedStep
from msad.training.job_config import JobConfig
from msad.training.loop import computes_in_bfloat16, fit
from msad.training.training_data import TrainingData
from msad.training.validation import validate

TRIALS: dict[str, dict[str, Any]] = {
    "feature_pyramid": {"image_size": 256, "model": {}},
    "multiscale": {"image_size": 128, "model": {"base_width": 16}},
}
VALIDATION_SHARE = 0.15
ENOUGH_SECONDS = 60  # of an arm; it is not repeated after that

_here: dict[str, Any] = {}  # of a worker process: its data, its device, the barrier


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", default=",".join(TRIALS))
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--steps", type=int, default=100, help="of each trial; rounded up to whole epochs")
    parser.add_argument("--repeats", type=int, default=3, help="of each arm, fewer where they take over a minute")
    parser.add_argument("--processes", default="16,8,4", help="how many at once, beside one")
    parser.add_argument("--images", type=int, default=209)
    parser.add_argument("--image-size", type=int, help="in place of the architecture's in TRIALS")
    parser.add_argument("--mps", action="store_true", help="repeat the packed processes under MPS")
    parser.add_argument("--no-together", action="store_true", help="leave out the batched training")
    parser.add_argument("--limit", type=float, default=500, help="seconds for everything; what is late is given up")
    options = parser.parse_args()
    deadline = time.monotonic() + options.limit
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"{device}, {os.cpu_count()} CPU cores, torch {torch.__version__}", flush=True)
    for name in options.architectures.split(","):
        with tempfile.TemporaryDirectory() as folder:
            compare(name, options, Path(folder), deadline)


def compare(name: str, options: argparse.Namespace, folder: Path, deadline: float) -> None:
    """Run every arm for one architecture and print its table."""
    base = first_job(name, options.image_size)
    write_images(folder, options.images, base.image_size)
    with pool(1, folder, deadline) as submit:
        ((per_epoch, preparing),) = submit(_prepare, [base])
    epochs = math.ceil(options.steps / per_epoch)
    base = dataclasses.replace(base, epochs=epochs, evaluate_every=epochs)
    short = dataclasses.replace(base, epochs=1, evaluate_every=1)
    jobs = trials(base, options.trials)
    print(
        f"\n{len(jobs)} trials of {epochs * per_epoch} steps and a validation, {name} at {base.image_size} pixels, "
        f"batch {base.batch_size}, model {dict(base.model)}; {preparing:.1f} s of a trial are its preparation\n"
        f"{'arm':24} {'seconds':>8} {'runs':>4} {'ratio':>6} {'start':>6} {'GiB':>6}  mean loss of the last epoch"
    )

    def measure(processes: int, warm_up: tuple[Callable, list], work: tuple[Callable, list]) -> list[float]:
        seconds: list[float] = []
        with pool(processes, folder, deadline) as submit:
            began = time.perf_counter()
            submit(*warm_up)
            start = time.perf_counter() - began
            while len(seconds) < options.repeats and sum(seconds) < ENOUGH_SECONDS:
                began = time.perf_counter()
                results = [end for ends in submit(*work) for end in ends]
                seconds.append(time.perf_counter() - began)
        memory = {pid: gib for _, pid, gib in results}
        losses = statistics.mean(loss for loss, _, _ in results)
        return [statistics.median(seconds), len(seconds), start, sum(memory.values()), losses]

    def packed(count: int) -> Callable[[], list[float]]:
        return lambda: measure(count, (_warm_up, [short] * count), (_train_one, jobs))

    def together() -> list[float]:
        first = [dataclasses.replace(job, epochs=1, evaluate_every=1) for job in jobs]
        return measure(1, (_train_together, [first]), (_train_together, [jobs]))

    counts = [int(count) for count in options.processes.split(",")]
    single = show("one at a time", packed(1), None)
    if not options.no_together:
        show("together (vmap)", together, single)
    for count in counts:
        show(f"{count} processes", packed(count), single)
    if options.mps:
        with mps() as why_not:
            for count in counts if why_not is None else []:
                show(f"{count} processes, MPS", packed(count), single)
            if why_not:
                print(f"MPS: {why_not}", flush=True)


def show(arm: str, run: Callable[[], list[float]], single: float | None) -> float | None:
    """Print an arm's line, or why it failed, for the others go on; return its seconds."""
    try:
        seconds, runs, start, gib, loss = run()
    except Exception as error:
        print(f"{arm:24} failed: {type(error).__name__}: {first_line(error)[:200]}", flush=True)
        return None
    ratio = (single or seconds) / seconds
    print(f"{arm:24} {seconds:8.2f} {runs:4} {ratio:6.2f} {start:6.1f} {gib:6.2f}  {loss:.5f}", flush=True)
    return seconds


def first_job(name: str, image_size: int | None) -> JobConfig:
    """Return the job that the trials vary."""
    settings = {key: value for key, value in architecture(name).training_defaults.items() if key != "evaluate_every"}
    chosen = dict(TRIALS.get(name, {"image_size": 256, "model": {}}))
    if name == "feature_pyramid" and find_spec("efficientnet_lite_pytorch") is None:
        chosen["model"] = {"backbone": "resnet18"}
    job = JobConfig(category="brick", architecture=name, **{**settings, **chosen})
    return dataclasses.replace(job, image_size=image_size or job.image_size)


def trials(base: JobConfig, count: int) -> list[JobConfig]:
    """Return jobs that differ in learning rate and loss weights, half to twice the defaults."""
    rng = np.random.default_rng(0)
    defaults = architecture(base.architecture).default_loss_weights
    return [
        dataclasses.replace(
            base,
            learning_rate=base.learning_rate * 2 ** rng.uniform(-1, 1),
            loss_weights={term: weight * 2 ** rng.uniform(-1, 1) for term, weight in defaults.items()},
        )
        for _ in range(count)
    ]


def write_images(folder: Path, count: int, size: int) -> None:
    photograph, rng = load_photograph("brick.png"), np.random.default_rng(0)
    images = np.stack([(255 * cut_texture(photograph, size, rng)).clip(0, 255).astype(np.uint8) for _ in range(count)])
    held_out = max(10, round(VALIDATION_SHARE * count))
    synthetic = make_synthetic_defects(images[:held_out], 0, view_size=size)
    arrays = {"train": images[held_out:], "validation": images[:held_out], "textures": load_textures(size)}
    for name, array in {**arrays, **{f"synthetic_{key}": part for key, part in vars(synthetic).items()}}.items():
        np.save(folder / f"{name}.npy", array)


def read_images(folder: Path) -> TrainingData:
    arrays = {path.stem: np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))}
    synthetic = {key.removeprefix("synthetic_"): part for key, part in arrays.items() if key.startswith("synthetic_")}
    return TrainingData(
        train_NHWC=arrays["train"],
        validation_NHWC=arrays["validation"],
        synthetic=SyntheticSet(**synthetic),
        textures_NHWC=arrays["textures"],
        cached=lambda key, make: cached_arrays(key, make, folder / "kept"),
    )


@contextlib.contextmanager
def pool(processes: int, folder: Path, deadline: float) -> Iterator[Callable[[Callable, list], list]]:
    """Start processes and yield a function that runs a function on each of some values; all end with the block."""
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(processes, context, _begin, (folder, processes, context.Barrier(processes)))

    def submit(function: Callable, values: list) -> list:
        futures = [executor.submit(function, value) for value in values]
        _, late = wait(futures, timeout=max(0, deadline - time.monotonic()))
        if late:
            raise TimeoutError("--limit is over")
        return [future.result() for future in futures]

    try:
        yield submit
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            child.kill()


def _begin(folder: Path, processes: int, barrier: Any) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _here.update(data=read_images(folder), device=device, barrier=barrier)


def _prepare(job: JobConfig) -> tuple[int, float]:
    """Encode images for a frozen encoder; return the steps of an epoch and the seconds of preparing once more."""
    with _backbone(job):
        model = build(job.architecture, **job.model).to(_here["device"])
        for _ in range(2):
            began = time.perf_counter()
            batches = make_batches(job, _here["data"], model, _here["device"])
    return math.ceil(len(batches) / job.batch_size), time.perf_counter() - began


def _warm_up(job: JobConfig) -> None:
    _train_one(job)
    _here["barrier"].wait()  # so that each process takes one of these


def _train_one(job: JobConfig) -> list[tuple[float, int, float]]:
    losses: list[float] = []
    with _backbone(job):
        fit(
            job,
            _here["data"],
            device=_here["device"],
            report=lambda metrics, _state: losses.append(metrics["train_loss"]),
            get_checkpoint=lambda: None,
        )
    return [(losses[-1], os.getpid(), _gib())]


def _train_together(jobs: list[JobConfig]) -> list[tuple[float, int, float]]:
    with _backbone(jobs[0]):
        losses = fit_together(jobs, _here["data"], _here["device"])
    return [(loss, os.getpid(), _gib()) for loss in losses]


def fit_together(jobs: list[JobConfig], data: TrainingData, device: torch.device) -> list[float]:
    """Train jobs that differ in learning rate and loss weights alone as one model with stacked parameters.

    Returns each job's training loss of the last epoch: that of `msad.training.loop.fit` but for rounding and for
    dropout's masks.
    """
    job = jobs[0]
    torch.manual_seed(job.seed)
    model = build(job.architecture, **job.model).to(device)
    batches = make_batches(job, data, model, device)
    model.adapt(batches.clean())
    wrapped = _Losses(model.train(), list(job.loss_weights))
    weights_KT = torch.tensor([list(other.loss_weights.values()) for other in jobs], device=device)
    parameters = {
        name: value.detach().expand(len(jobs), *value.shape).clone() for name, value in wrapped.named_parameters()
    }
    buffers = {name: value.expand(len(jobs), *value.shape).clone() for name, value in wrapped.named_buffers()}
    trained = [parameters[name].requires_grad_() for name, value in wrapped.named_parameters() if value.requires_grad]
    per_epoch = math.ceil(len(batches) / job.batch_size)
    optimizer = StackedAdamW(trained, jobs, job.epochs * per_epoch)
    generator, mixed = torch.Generator(device), computes_in_bfloat16(device)

    def losses(parameters: dict, buffers: dict, weights_T: Tensor, batch: tuple) -> Tensor:
        return torch.func.functional_call(wrapped, (parameters, buffers), batch) @ weights_T

    losses_of_each = torch.func.vmap(losses, in_dims=(0, 0, 0, None), randomness="different")

    def gradients(rows: Tensor) -> Tensor:
        batch = batches.draw(rows, generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            loss_K = losses_of_each(parameters, buffers, weights_KT, batch)
        loss_K.sum().backward()
        return loss_K.detach()

    recordable = device.type == "cuda" and batches.on_device
    step = ReplayedStep(gradients, trained, generator) if recordable else gradients
    for epoch in range(1, job.epochs + 1):
        seed = job.seed * 1_000_003 + epoch  # as `fit` does
        torch.manual_seed(seed)
        generator.manual_seed(seed)
        sum_K = torch.zeros(len(jobs), device=device)
        for rows in batches.stream(torch.randperm(len(batches)).split(job.batch_size)):
            for parameter in trained:
                parameter.grad = None
            loss_K = step(rows)
            optimizer.step([parameter.grad for parameter in trained], job.gradient_clip)
            sum_K += loss_K * (len(rows) / len(batches))
        losses_of_epoch = sum_K.tolist()  # the one wait of the epoch
    for index in range(len(jobs)):
        state = {**parameters, **buffers}
        wrapped.load_state_dict({name: state[name][index].detach() for name in wrapped.state_dict()})
        validate(model, batches, data, job)
    return losses_of_epoch


class _Losses(nn.Module):
    """A model's losses as its forward pass, for `functional_call`."""

    def __init__(self, model: nn.Module, terms: list[str]) -> None:
        super().__init__()
        self.model, self.terms = model, terms

    def forward(self, clean: Any, corrupted: Any, mask_B1HW: Tensor) -> Tensor:
        values = self.model.losses(clean, corrupted, mask_B1HW, terms=self.terms)
        return torch.stack([values[term] for term in self.terms])


class StackedAdamW:
    """AdamW with one cycle, as `fit` uses it, over parameters K×...; each of the K has its own learning rate."""

    def __init__(self, parameters: list[Tensor], jobs: list[JobConfig], steps: int) -> None:
        self.parameters, self.decay = parameters, jobs[0].weight_decay
        rates_K = torch.tensor([job.learning_rate for job in jobs], device=parameters[0].device)
        self.rates = [rates_K.view(-1, *[1] * (value.ndim - 1)) for value in parameters]
        self.means = [torch.zeros_like(value) for value in parameters]
        self.squares = [torch.zeros_like(value) for value in parameters]
        self.like = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1.0)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.like, max_lr=1.0, total_steps=steps)
        self.count = 0

    @torch.no_grad()
    def step(self, gradients: list[Tensor], clip: float) -> None:
        group, self.count = self.like.param_groups[0], self.count + 1
        share, (beta1, beta2) = group["lr"], group["betas"]
        if clip:
            norm_K = sum(gradient.flatten(1).square().sum(dim=1) for gradient in gradients).sqrt()
            scale_K = (clip / (norm_K + 1e-6)).clamp(max=1)
            scales = [scale_K.view(-1, *[1] * (gradient.ndim - 1)) for gradient in gradients]
            gradients = torch._foreach_mul(gradients, scales)
        torch._foreach_lerp_(self.means, gradients, 1 - beta1)
        torch._foreach_mul_(self.squares, beta2)
        torch._foreach_addcmul_(self.squares, gradients, gradients, 1 - beta2)
        roots = torch._foreach_sqrt(self.squares)
        torch._foreach_div_(roots, math.sqrt(1 - beta2**self.count))
        torch._foreach_add_(roots, group["eps"])
        updates = torch._foreach_div(self.means, roots)
        torch._foreach_div_(updates, 1 - beta1**self.count)
        torch._foreach_add_(updates, self.parameters, alpha=self.decay)
        torch._foreach_mul_(updates, self.rates)
        torch._foreach_add_(self.parameters, updates, alpha=-share)
        self.like.step()
        self.schedule.step()


@contextlib.contextmanager
def mps() -> Iterator[str | None]:
    """Run NVIDIA's Multi-Process Service for the processes that are started inside; yield why not, or None."""
    control = shutil.which("nvidia-cuda-mps-control")
    if control is None or not torch.cuda.is_available():
        yield "no nvidia-cuda-mps-control on the path" if control is None else "no CUDA device"
        return
    with tempfile.TemporaryDirectory() as folder:
        places = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        os.environ.update(places)
        try:
            started = subprocess.run([control, "-d"], capture_output=True, text=True, timeout=30)
            yield (started.stderr or started.stdout or "it did not start").strip() if started.returncode else None
        finally:
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run([control], input="quit\n", text=True, capture_output=True, timeout=30)
            for name in places:
                os.environ.pop(name)


def _backbone(job: JobConfig) -> contextlib.AbstractContextManager[None]:
    return untrained() if "backbone" in job.model else contextlib.nullcontext()


def _gib() -> float:
    """Return what this process took at most: of the GPU where there is one, else of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
