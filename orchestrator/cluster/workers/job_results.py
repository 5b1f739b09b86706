"""What a finished training leaves in its job's folder, or in those of its products: bundle, curves, and the result."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from msad.bundle.bundles import Bundle
from msad.bundle.latency import latency_within
from msad.cluster.workers.task import Task
from msad.errors import TooSlow
from msad.models.defects import known_share
from msad.models.outliers import stand_out
from msad.models.registry import count_parameters
from msad.training.training_data import TrainingData
from msad.training.validation import Fitted
from msad.workspace import JobDirectory

MEANS = ("score", "image_auroc", "pixel_ap", "chance")  # what the training of several products is worth


def folders(task: Task) -> list[JobDirectory]:
    """Return where the models of a task belong: its own folder, or that of each of its products."""
    if not task.job.is_whole:
        return [task.directory]
    return [task.directory.product(place) for place in range(len(task.job.joint))]


def finish(
    task: Task, fitted: Sequence[Fitted], data: Sequence[TrainingData], device: torch.device, timed_on: torch.device
) -> None:
    """Keep what a job is for: its bundles and curves, and last the result, which says that all else is there.

    Parameters
    ----------
    task
        The job and its folder.
    fitted, data
        What each of its products makes of the network, and what it has seen of them.
    device, timed_on
        Where it was trained, and where an image's time counts.

    Raises
    ------
    TooSlow
        One of the models takes longer than the task's budget. No bundle is left.
    """
    places = folders(task)
    parameters = count_parameters(fitted[0].model)  # before the bundle freezes them
    common = {"parameters": parameters, "executor": task.provenance.get("executor")}
    try:
        each = [
            _keep(task.of_product(job.category) if task.job.is_whole else task, *parts, device, timed_on) | common
            for job, *parts in zip(task.job.of_products(), fitted, data, strict=True)
        ]
    except TooSlow:  # what it met in the images has made it slower
        for place in places:
            shutil.rmtree(place.bundle, ignore_errors=True)
        raise
    for place, result in zip(places, each, strict=True):
        place.write("result", result)
    if task.job.is_whole:
        _draw_curves(task.directory)
        task.directory.write("result", _together(task, each) | common)


def _keep(
    task: Task, fitted: Fitted, data: TrainingData, device: torch.device, timed_on: torch.device
) -> dict[str, Any]:
    """Keep the bundle and the curves of one product; return what its result says."""
    provenance = {
        **task.provenance,
        "job_id": task.job_id,
        "identity": data.identity.to_dict(),
        "images": {
            "train": len(data.train_NHWC),
            "validation": len(data.validation_NHWC),
            "synthetic": len(data.synthetic.images),
        },
        "known_defects": told_of_known(data),
        "suspects": suspects_of(fitted, data),
        "epoch": fitted.epoch,
        "validation": fitted.validation,
        "false_alarms": fitted.false_alarms.to_dict(),
        "false_regions": fitted.false_regions.to_dict(),
        "held_out": {"score": fitted.good_scores.tolist()}
        | {name: one.tolist() for name, one in data.statistics.items()},
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "cpu",
    }
    bundle = Bundle(
        model=fitted.model,
        scorer=fitted.scorer,
        threshold=fitted.threshold,
        job=task.job,
        provenance=provenance,
        pixel_threshold=fitted.pixel_threshold,
    )
    bundle.save(task.directory.bundle)
    timed = bundle if timed_on == device else Bundle.load(task.directory.bundle, timed_on)
    latency = latency_within(timed, task.latency_budget)
    _draw_curves(task.directory)
    return {
        "epoch": fitted.epoch,
        "threshold": fitted.threshold,
        "false_alarms": fitted.false_alarms.to_dict(),
        "pixel_threshold": fitted.pixel_threshold,
        "false_regions": fitted.false_regions.to_dict(),
        "known_defects": provenance["known_defects"],
        "suspects": provenance["suspects"],
        "latency_ms": latency,
        **fitted.validation,
    }


def _together(task: Task, each: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the result of a training of several products: means, the slowest's time, and each one's score."""
    return {
        "epoch": each[0]["epoch"],
        "suspects": [name for one in each for name in one["suspects"]],
        "latency_ms": max(one["latency_ms"] for one in each),
        **{name: sum(one[name] for one in each) / len(each) for name in MEANS},
        "products": {name: one["score"] for name, one in zip(task.job.joint, each, strict=True)},
    }


def _draw_curves(directory: JobDirectory) -> None:
    from msad.pictures.curves import save_training_curves  # matplotlib is not to delay the first step

    save_training_curves(pd.DataFrame(directory.progress()), directory.path / "pictures" / "training.png")


def told_of_known(data: TrainingData) -> dict[str, Any]:
    """Return how many known defects have helped to choose, by type and what they counted, and how many were taught."""
    chosen = data.known.types if data.known else ()
    types = {name: chosen.count(name) for name in sorted(set(chosen))}
    taught = len(data.taught) if data.taught else 0
    return {"count": len(chosen), "types": types, "share": known_share(len(chosen)), "taught": taught}


def suspects_of(fitted: Fitted, data: TrainingData) -> list[str]:
    """Return the good images whose scores stand out among those that the thresholds rest on, the farthest first."""
    train, validation = data.identity.train_names, data.identity.validation_names
    names = [*validation, *(train[position] for position in fitted.also_scored)]
    out_N = np.flatnonzero(stand_out(fitted.good_scores))
    return [names[index] for index in sorted(out_N, key=lambda index: -fitted.good_scores[index])]
