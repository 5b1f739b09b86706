"""How long a model takes for one image: of a finished one, and of a network before it is trained.

Training changes weights and not how long they take, so a configuration that cannot keep a budget of time is known by
it in a second.
"""

from __future__ import annotations

import statistics
import time
from functools import partial

import numpy as np
import torch

from msad.bundle.bundles import Bundle
from msad.bundle.exported_model import ExportedModel
from msad.errors import TooSlow
from msad.models.backbones import untrained
from msad.models.base import SelfTraining
from msad.models.registry import build
from msad.models.scorer import Scoring, fit_scorer
from msad.models.tiling import tiled
from msad.training.job_config import JobConfig
from msad.training.validation import fixed_scoring

WARM_UP, FEWEST, MOST, SECONDS = 3, 5, 20, 2.0  # calls that are not timed, and that are; and how long at most
ATTEMPTS = 3


def measure_latency(model: Bundle | ExportedModel) -> float:
    """Return the median time in ms that one image of the model's size takes on its device, batch of one.

    Of 20 calls, fewer where they take longer than two seconds in all, but of five at least.
    """
    if isinstance(model, ExportedModel):
        score = partial(model.score_images, np.zeros((1, *model.job.sides, 3), np.uint8))
    else:
        image_BCHW = torch.rand(1, 3, *model.job.sides, device=model.device)
        score = lambda: model.score_batch(image_BCHW)[1].cpu()  # noqa: E731 - reading the score waits for the device
    for _ in range(WARM_UP):
        score()
    times, first = [], time.perf_counter()
    while len(times) < FEWEST or (len(times) < MOST and time.perf_counter() - first < SECONDS):
        began = time.perf_counter()
        score()
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)


def latency_within(model: Bundle, budget: float | None = None) -> float:
    """Return `measure_latency`; above a budget the lowest of three, for a machine may be busy with others.

    Raises
    ------
    TooSlow
        It is above the budget all three times.
    """
    latency, attempts = measure_latency(model), 1
    while budget is not None and latency > budget:
        if attempts == ATTEMPTS:
            raise TooSlow(latency, budget)
        latency, attempts = min(latency, measure_latency(model)), attempts + 1
    return latency


@torch.no_grad()
def untrained_bundle(job: JobConfig, device: torch.device) -> Bundle | None:
    """Return a job's network with random weights and a scoring, as long as its own would take; None if it has none yet.

    What a network decides when it meets the images is not decided: whether parts are straightened, say.
    """
    with untrained():
        model = build(job.architecture, **job.model)
    if isinstance(model, SelfTraining):  # it is made by its training
        return None
    model = tiled(model, job.tiles).to(device, memory_format=torch.channels_last).eval()
    maps = model.anomaly_maps(torch.rand(2, 3, *job.sides, device=device))
    scoring = fixed_scoring(model, job.view_size) or Scoring(weights=dict.fromkeys(maps, 1.0), smoothing=2.0)
    return Bundle(model=model, scorer=fit_scorer(scoring, maps), threshold=0.0, pixel_threshold=0.0, job=job)
