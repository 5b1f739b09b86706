"""What a worker does with one job, whichever executor brought it here: data, fit, bundle. No Ray, no MLflow."""

from __future__ import annotations

import io
import pickle
import platform
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from msad.bundle.batch_scoring import find_device
from msad.bundle.bundles import Bundle
from msad.bundle.latency import latency_within, untrained_bundle
from msad.cluster.workers.task import Task
from msad.data_io.cache import PIXELS_VERSION, cached_arrays, load_images
from msad.data_io.errors import DataError
from msad.data_io.image_statistics import statistics_of_files
from msad.data_io.known_defects import KnownDefectFiles
from msad.data_io.photographs import VERSION as PHOTOGRAPHS_VERSION
from msad.data_io.photographs import load_textures
from msad.data_io.roi import load_roi
from msad.data_io.shape import plain_size
from msad.data_io.splits import split_good_images
from msad.errors import USER_ERRORS, Diverged, OutOfMemory, ResourceError, TooSlow, TrainingError, first_line, full_disk
from msad.models.defects import KnownDefects, known_share
from msad.models.errors import ModelError
from msad.models.kernels import native
from msad.models.outliers import stand_out
from msad.models.registry import count_parameters, use
from msad.models.synthesis.synthetic_defects import SyntheticSet, make_synthetic_defects
from msad.training.identity import identity_of
from msad.training.job_config import JobConfig
from msad.training.loop import fit
from msad.training.training_data import TrainingData
from msad.training.validation import Fitted
from msad.training.worker_group import SINGLE_WORKER, WorkerGroup
from msad.workspace import full_disk_told

CONFIGURATION_ERRORS = (Diverged, OutOfMemory, ModelError, TooSlow)
"""What a job ends with because of its configuration; another one may do."""


def run(
    task: Task,
    *,
    report: Callable[[dict[str, Any], Path | None], None],
    resume_from: Callable[[], Path | None],
    group: WorkerGroup = SINGLE_WORKER,
) -> None:
    """Train a task's model and leave its bundle, or the reason why there is none, in the task's folder.

    Parameters
    ----------
    task
        The job, where its data is and where its results belong.
    report
        Called after every evaluation with the metrics and a file that holds the state to go on from, which the first
        worker of a group alone has.
    resume_from
        Returns such a file of an earlier attempt, None for a fresh start.
    group
        The workers that train this model together. Only the first one writes.

    A job that cannot succeed (a loss that is not finite, too little memory, unreadable data) is reported as
    `{"failure": reason, "teaches": whether its configuration is to blame}` and returns: another attempt would end
    alike. Any other exception is raised, to be retried: an error in a program, a `ValueError` too, says nothing about
    the configuration. So is too little memory for one worker of a group, for which the others would wait; any other
    error of one is raised in all, so that they end alike.
    """
    directory = task.directory
    if group.rank == 0:
        directory.write("job", task.job.to_dict())
    torch.set_num_threads(max(1, int(task.cpus)))
    device = torch.device("cuda" if torch.cuda.is_available() and task.gpus else "cpu")
    if device.type == "cuda" and task.gpus < 1:  # so that no trial takes what belongs to those beside it
        torch.cuda.set_per_process_memory_fraction(task.gpus)
    if device.type == "cpu" and (reason := native.prepare(task.node_cache)) and group.rank == 0:
        slow = f"training on a CPU takes about 1.1 times as long as it could: {reason}"
        directory.write("remark", {"remark": slow})

    def report_state(metrics: dict[str, float], state: dict[str, Any]) -> None:
        told = {**metrics, "objective": metrics[task.job.objective]}
        if group.rank:
            report(told, None)
            return
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "checkpoint.pt"
            content = io.BytesIO()  # where a disk is full, torch's own writing ends in an error of its internals
            torch.save(state, content)
            with full_disk_told(file):
                file.write_bytes(content.getbuffer())
            directory.append_progress(metrics)
            report(told, file)

    def load() -> dict[str, Any] | None:
        return load_checkpoint(file, device) if (file := resume_from()) else None

    def get_checkpoint() -> dict[str, Any] | None:
        return group.on_every_rank(load)

    def check_latency() -> None:
        """Find a network that is too slow before it is trained."""
        if (untrained := untrained_bundle(task.job, timed_on())) is not None:
            latency_within(untrained, task.latency_budget)

    def timed_on() -> torch.device:
        return find_device(task.latency_device) if task.latency_device else device

    def load_data() -> TrainingData:
        data = load_training_data(task.job, task.dataset, task.node_cache, task.layout)
        if task.identity not in (None, data.identity.digest):
            raise DataError(
                f"{task.dataset}: the images of {task.job.category} are others than when the sweep began; stop it and "
                "resume it to read which"
            )
        return data

    def finish(fitted: Fitted, data: TrainingData) -> None:
        """Keep what a job is for: its bundle and its curves, and last the result, which says that all else is there."""
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
        parameters = count_parameters(fitted.model)  # before the bundle freezes them
        bundle = Bundle(
            model=fitted.model,
            scorer=fitted.scorer,
            threshold=fitted.threshold,
            job=task.job,
            provenance=provenance,
            pixel_threshold=fitted.pixel_threshold,
        )
        bundle.save(directory.bundle)
        try:
            timed = bundle if timed_on() == device else Bundle.load(directory.bundle, timed_on())
            latency = latency_within(timed, task.latency_budget)
        except TooSlow:  # what it met in the images has made it slower
            shutil.rmtree(directory.bundle)
            raise
        from msad.pictures.curves import save_training_curves  # matplotlib is not to delay the first step

        save_training_curves(pd.DataFrame(directory.progress()), directory.path / "pictures" / "training.png")
        directory.write(
            "result",
            {
                "epoch": fitted.epoch,
                "threshold": fitted.threshold,
                "false_alarms": fitted.false_alarms.to_dict(),
                "pixel_threshold": fitted.pixel_threshold,
                "false_regions": fitted.false_regions.to_dict(),
                "known_defects": provenance["known_defects"],
                "suspects": provenance["suspects"],
                "parameters": parameters,
                "latency_ms": latency,
                "executor": task.provenance.get("executor"),
                **fitted.validation,
            },
        )

    try:
        use(task.job.architecture)  # the sweep's own configuration names it, not a file from elsewhere
        if task.latency_budget is not None:
            group.on_rank_zero(check_latency)
        data = group.on_every_rank(load_data)
        fitted = fit(task.job, data, device=device, report=report_state, get_checkpoint=get_checkpoint, group=group)
        group.on_rank_zero(finish, fitted, data)
    except ResourceError:  # the disk is full: not this job's fault, and another attempt may find space
        raise
    except USER_ERRORS as error:
        if full_disk(error):
            raise
        reason = str(error)
        if isinstance(error, OutOfMemory):
            if group.world_size > 1:
                raise
            if 0 < task.gpus < 1:
                reason += f"; this trial had {task.gpus:g} of a GPU: raise --gpus-per-trial"
        if group.rank == 0:
            directory.write("failure", {"reason": reason, "kind": type(error).__name__})
        told = {"failure": reason, "teaches": isinstance(error, CONFIGURATION_ERRORS)}
        if isinstance(error, TooSlow):
            told["too_slow"] = [error.latency, error.budget]
        report(told | {"objective": 0.0, "best_objective": 0.0}, None)


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


def load_checkpoint(file: Path, device: torch.device) -> dict[str, Any]:
    """Return the state to go on from; nothing but tensors, numbers and their containers is unpickled.

    Raises
    ------
    TrainingError
        The file is damaged, or holds anything else.
    """
    try:
        return torch.load(file, map_location=device, weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
    ) as error:
        raise TrainingError(
            f"{file}: no checkpoint of msad, or a damaged one ({first_line(error)}); remove it and search anew"
        ) from error


def load_training_data(job: JobConfig, dataset: Path, cache: Path, layout: str = "auto") -> TrainingData:
    """Return a job's arrays, decoded or made once per machine and memory-mapped after that; opens no test file.

    Raises
    ------
    msad.data_io.errors.DataError
        The category or an image cannot be read.
    """
    split = split_good_images(dataset, job.category, job.seed, layout=layout)
    identity = identity_of(job, dataset, layout, cache, split)
    known, taught = KnownDefectFiles.find(dataset, job.category, layout).divided(job.train_on_defects)
    validation_NHWC = load_images(split.validation_paths, job.image_size, cache, job.bit_depth)
    roi_HW = load_roi(dataset, job.category, job.image_size, split.train_paths[0], layout)

    def make() -> dict[str, np.ndarray]:
        good_NHWC = np.asarray(validation_NHWC)
        return dict(vars(make_synthetic_defects(good_NHWC, job.seed, view_size=job.view_size, roi_HW=roi_HW)))

    def real(files: KnownDefectFiles, name: str) -> KnownDefects | None:
        if not len(files):
            return None
        kept = cached(name, lambda: dict(zip(("masks", "masked"), files.masks(job.image_size), strict=True)))
        return KnownDefects(files.images(job.image_size, cache, job.bit_depth), **kept, types=files.defect_types)

    def textures() -> dict[str, np.ndarray]:
        return {"textures": load_textures(job.view)}

    def cached(name: str, make_arrays: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return cached_arrays(identity.key(name), make_arrays, cache)

    # The same for all images.
    photographs = f"textures v{PHOTOGRAPHS_VERSION} of pixels v{PIXELS_VERSION}, {plain_size(job.view)}"
    return TrainingData(
        train_NHWC=load_images(split.train_paths, job.image_size, cache, job.bit_depth),
        validation_NHWC=validation_NHWC,
        synthetic=SyntheticSet(**cached("synthetic", make)),
        known=real(known, "known defects"),
        taught=real(taught, "taught defects"),
        textures_NHWC=cached_arrays(photographs, textures, cache)["textures"],
        roi_HW=roi_HW,
        statistics=statistics_of_files(split.validation_paths, job.bit_depth, cache),
        cached=cached,
        identity=identity,
    )
