"""What a device allows a job to train at most: the limit of `training.py`."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from msad.models.base import AnomalyModel
from msad.models.kernels.norm_relu import NormReLU
from msad.models.registry import build, count_parameters
from msad.training.batches import make_batches
from msad.training.job_config import JobConfig
from msad.training.training_data import TrainingData

NORM_PASSES = 8  # forward: statistics, then apply and write; backward: two sums over two tensors, then two in, one out


def limit(job: JobConfig, data: TrainingData, device: torch.device, mixed: bool) -> float:
    """Images per second if a job did nothing but its convolutions and its normalisations' traffic."""
    dtype = torch.bfloat16 if mixed else torch.float32
    model = build(job.architecture, **job.model).to(device, memory_format=torch.channels_last).train()
    layers = _layers(model, job, data, device)
    convolutions = sum(
        count * _convolution_seconds(layer, shape, dtype, device, first=number == 0)
        for number, ((layer, shape), count) in enumerate(_equal(layers, nn.Conv2d, nn.ConvTranspose2d))
    )
    bytes_moved = sum(
        NORM_PASSES * math.prod(shape) * dtype.itemsize
        for layer, shape in layers
        if isinstance(layer, NormReLU | nn.GroupNorm)
    )
    rate = _copy_rate(device)
    print(
        f"  limit: convolutions {1e3 * convolutions:.3f} ms, normalisation {1e3 * bytes_moved / rate:.3f} ms a step at "
        f"{rate / 1e9:.0f} GB/s; {count_parameters(model):,} parameters",
        flush=True,
    )
    return job.batch_size / (convolutions + bytes_moved / rate)


def _layers(
    model: AnomalyModel, job: JobConfig, data: TrainingData, device: torch.device
) -> list[tuple[nn.Module, tuple[int, ...]]]:
    """Return the trained layers in the order of a step, with the shapes that they get."""
    met: list[tuple[nn.Module, tuple[int, ...]]] = []
    kinds = (nn.Conv2d, nn.ConvTranspose2d, NormReLU, nn.GroupNorm)
    batches = make_batches(job, data, model, device)
    (batch,) = batches.stream([torch.arange(job.batch_size)])
    drawn = batches.draw(batch, torch.Generator(device).manual_seed(0))
    trained = [m for m in model.modules() if isinstance(m, kinds) and any(p.requires_grad for p in m.parameters())]
    hooks = [
        layer.register_forward_pre_hook(lambda module, given: met.append((module, tuple(given[0].shape))))
        for layer in trained
    ]
    model.losses(*drawn, terms=dict(model.default_loss_weights))
    for hook in hooks:
        hook.remove()
    return met


def _equal(
    layers: list[tuple[nn.Module, tuple[int, ...]]], *kinds: type[nn.Module]
) -> list[tuple[tuple[nn.Module, tuple[int, ...]], int]]:
    """Return one of each kind of layer and shape, and how often it occurs."""
    groups: dict[str, list[tuple[nn.Module, tuple[int, ...]]]] = {}
    for layer, shape in layers:
        if isinstance(layer, kinds):
            groups.setdefault(f"{layer} {shape}", []).append((layer, shape))
    return [(members[0], len(members)) for members in groups.values()]


def _convolution_seconds(
    layer: nn.Module, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, *, first: bool
) -> float:
    """Time a convolution forward and backward, alone; nobody needs the gradient of the first one's input."""
    layer = copy.deepcopy(layer).to(device, dtype, memory_format=torch.channels_last)
    given = torch.randn(shape, device=device).to(dtype, memory_format=torch.channels_last).requires_grad_(not first)
    back = torch.randn_like(layer(given))

    def run() -> None:
        torch.autograd.grad(layer(given), [*layer.parameters(), *([] if first else [given])], back)

    return _seconds(run, device)


def _copy_rate(device: torch.device) -> float:
    """Bytes read and written a second by a large copy."""
    source = torch.randn(1 << 26, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source), device)


def _seconds(run: Callable[[], Any], device: torch.device, repeats: int = 10) -> float:
    """Return the median time of a call; on a GPU of one within a graph, so that launching costs nothing."""
    run()
    if device.type != "cuda":
        times = []
        for _ in range(5):
            began = time.perf_counter()
            run()
            times.append(time.perf_counter() - began)
        return statistics.median(times)
    graph, beside = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(beside)
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            run()
    times = []
    for _ in range(7):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / repeats)
    return statistics.median(times)
