"""The training loop: plain torch, read from top to bottom. It knows neither Ray nor MLflow nor the disk.

Tensors are named by shape: B images of a batch, C channels, H×W pixels, N images of a set, T figures.

All good images live on the device (`training/batches.py`), batches and their corruption are made there, a GPU
repeats its steps by itself (`cuda_graphs.py`), and the host waits for it once an epoch (the habit of airbench,
github.com/KellerJordan/airbench). Every epoch draws from a seed of its own, so a run that resumes after epoch k goes on
exactly as the uninterrupted one would: no generator has to be saved.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from msad.errors import Diverged, OutOfMemory, first_line
from msad.models.base import AnomalyModel, SelfTraining
from msad.models.registry import build
from msad.models.tiling import tiled
from msad.training.cuda_graphs import ReplayedStep
from msad.training.job_config import JobConfig
from msad.training.products import Products
from msad.training.self_training import fit_itself
from msad.training.training_data import TrainingData
from msad.training.training_free import fit_training_free
from msad.training.validation import (
    BestCheckpoint,
    Fitted,
    GetCheckpoint,
    Report,
    told,
)
from msad.training.worker_group import SINGLE_WORKER, WorkerGroup

CUDA_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation


def fit(
    job: JobConfig,
    data: TrainingData,
    *,
    device: torch.device,
    report: Report,
    get_checkpoint: GetCheckpoint,
    group: WorkerGroup = SINGLE_WORKER,
) -> Fitted:
    """Train one model on one product; see `fit_products`."""
    (only,) = fit_products(job, [data], device=device, report=report, get_checkpoint=get_checkpoint, group=group)
    return only


def fit_products(
    job: JobConfig,
    data: Sequence[TrainingData],
    *,
    device: torch.device,
    report: Report,
    get_checkpoint: GetCheckpoint,
    group: WorkerGroup = SINGLE_WORKER,
) -> list[Fitted]:
    """Train one model and return its best checkpoint by the job's objective, with what each product makes of it.

    Parameters
    ----------
    job
        Everything that decides the outcome.
    data
        Good images of each product, all of `job.image_size`.
    device
        Where to train; the forward pass runs in bfloat16 where `computes_in_bfloat16` says so.
    report
        Called after every evaluation with the metrics (`epoch`, `train_loss`, `loss_<term>`, `learning_rate`,
        `validation_score`, `validation_image_auroc`, `validation_pixel_ap`, `best_objective`, `epoch_seconds`) and a
        state to go on from. `best_objective` is what the best epoch so far is worth on images that it was not chosen
        on (see `BestCheckpoint`): with several evaluations a little less than the highest of them. Of several products
        they are the means, and `products` lists each one's own.
    get_checkpoint
        Returns the last reported state, or None for a fresh start.
    group
        The workers that train this model together; each calls it with the same arguments but for its own `group`. On
        several products there is but one.

    Raises
    ------
    Diverged, OutOfMemory
        The loss is not finite; the device is full.
    msad.models.errors.ModelError
        The architecture, its parameters or the loss terms are wrong.
    """
    try:
        return _fit(job, data, device, report, get_checkpoint, group)
    except (RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
        raise OutOfMemory(
            f"out of memory on {device} with batch_size {job.batch_size}, image_size {job.image_size} and model "
            f"{dict(job.model)}: lower one of them ({first_line(error)})"
        ) from error


def _fit(
    job: JobConfig,
    data: Sequence[TrainingData],
    device: torch.device,
    report: Report,
    get_checkpoint: GetCheckpoint,
    group: WorkerGroup,
) -> list[Fitted]:
    torch.manual_seed(job.seed)
    model = build(job.architecture, **job.model)
    if isinstance(model, SelfTraining):
        return fit_itself(job, model.to(device), data, device, report)
    model = tiled(model, job.tiles).to(device, memory_format=torch.channels_last)
    if not model.loss_terms:
        return fit_training_free(job, model, data, device, report)
    model = group.synchronise_norm(model)
    weights = dict(job.loss_weights) or dict(model.default_loss_weights)
    weights = {term: weight for term, weight in weights.items() if weight > 0}
    losses, products = group.losses(model), Products(job, data, model, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=job.learning_rate, weight_decay=job.weight_decay, fused=True)
    steps_per_epoch = math.ceil(len(products) / products.batch_size)
    schedule = _schedule(job, optimizer, steps_per_epoch)
    generator = torch.Generator(device)
    mixed = computes_in_bfloat16(device)
    names = ["train_loss", *(f"loss_{term}" for term in model.loss_terms if term in weights)]

    def gradients(batch: Tensor) -> Tensor:
        drawn = products.draw(batch, generator, group.part(len(batch)))
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            terms = losses(*drawn, terms=weights)
        loss = sum(weights[name] * value for name, value in terms.items())
        loss.backward(torch.full_like(loss, group.weight(len(batch))))
        if job.gradient_clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), job.gradient_clip)
        return torch.stack([loss, *terms.values()]).detach()

    recordable = device.type == "cuda" and products.on_device and group.world_size == 1
    step = ReplayedStep(gradients, model.parameters(), generator) if recordable else gradients

    start, best = 0, BestCheckpoint()
    products.adapt()  # where it goes on too: of what it saw, a state holds no more than a model needs
    if (state := get_checkpoint()) is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if schedule is not None:
            schedule.load_state_dict(state["schedule"])
        start, best = state["epoch"], BestCheckpoint.from_state(state["best"])

    began, since = time.perf_counter(), start
    for epoch in range(start + 1, job.epochs + 1):
        if best.stale(epoch - 1, job):
            break
        torch.manual_seed(_epoch_seed(job.seed, epoch))
        generator.manual_seed(_epoch_seed(job.seed, epoch))
        model.train()
        sums_T = torch.zeros(len(names), device=device)
        for batch in products.stream(products.order()):
            optimizer.zero_grad(set_to_none=True)
            figures_T = step(batch)
            optimizer.step()
            if schedule is not None and job.schedule != "plateau":
                schedule.step()
            sums_T += figures_T * (group.weight(len(batch)) * len(batch) / len(products))
        metrics = dict(zip(names, group.mean(sums_T).tolist(), strict=True))  # the one wait of the epoch
        _refuse_divergence(job, epoch, math.isfinite(metrics["train_loss"]), "loss is")
        if job.schedule == "plateau":
            schedule.step(metrics["train_loss"])
        if epoch % job.evaluate_every and epoch != job.epochs:
            continue

        seconds = (time.perf_counter() - began) / (epoch - since)
        try:
            choices = group.on_rank_zero(products.validate)
        except FloatingPointError:  # the damage of the epoch's last step, which no loss has shown yet
            _refuse_divergence(job, epoch, False, "anomaly maps are")
        metrics |= {"epoch": epoch, "learning_rate": optimizer.param_groups[0]["lr"], "epoch_seconds": seconds}
        metrics |= told(choices, epoch, best, model, job.objective)
        report(metrics, _state(model, optimizer, schedule, epoch, best))
        began, since = time.perf_counter(), epoch

    model.load_state_dict(best.model)
    # There is none only when resumed at the end.
    choices = best.choices or group.on_rank_zero(products.validate)
    return products.fitted(group.on_rank_zero(products.settle, choices), best)


def _out_of_memory(error: RuntimeError | MemoryError) -> bool:
    if isinstance(error, torch.AcceleratorError):
        return error.error_code == CUDA_OUT_OF_MEMORY
    # torch's allocator on a CPU has no type of its own, and the system's code for it (ENOMEM) only in words.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _refuse_divergence(job: JobConfig, epoch: int, finite: bool, what: str) -> None:
    if not finite:
        raise Diverged(
            f"the {what} not finite in epoch {epoch} at learning_rate {job.learning_rate:g}: "
            f"lower it or clip the gradient (gradient_clip is {job.gradient_clip:g})"
        )


def computes_in_bfloat16(device: torch.device) -> bool:
    """Return whether bfloat16 is the faster arithmetic: on a GPU (since Ampere) or a CPU with instructions for it.

    Only training uses it: maps and scores are float32 everywhere, so that a threshold holds on any machine.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))


def _state(
    model: AnomalyModel, optimizer: torch.optim.Optimizer, schedule: Any, epoch: int, best: BestCheckpoint
) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict() if schedule is not None else {},
        "best": best.state(),
    }


def _schedule(job: JobConfig, optimizer: torch.optim.Optimizer, steps_per_epoch: int) -> Any:
    schedulers = torch.optim.lr_scheduler
    steps = job.epochs * steps_per_epoch
    if job.schedule == "one_cycle":
        return schedulers.OneCycleLR(optimizer, max_lr=job.learning_rate, total_steps=steps)
    if job.schedule == "cosine":
        return schedulers.CosineAnnealingLR(optimizer, T_max=steps)
    if job.schedule == "plateau":
        return schedulers.ReduceLROnPlateau(optimizer, factor=0.5, patience=5)
    return None


def _epoch_seed(seed: int, epoch: int) -> int:
    return seed * 1_000_003 + epoch
