"""What a worker does with one job, whichever executor brought it here: data, fit, results. No Ray, no MLflow."""

from __future__ import annotations

import io
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from msad.bundle.batch_scoring import find_device
from msad.bundle.latency import latency_within, untrained_bundle
from msad.cluster.workers.job_results import finish, folders
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
from msad.models.defects import KnownDefects
from msad.models.errors import ModelError
from msad.models.kernels import native
from msad.models.registry import use
from msad.models.synthesis.synthetic_defects import SyntheticSet, make_synthetic_defects
from msad.training.identity import digest_of, identity_of
from msad.training.job_config import JobConfig
from msad.training.loop import fit_products
from msad.training.training_data import TrainingData
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

    Of several products each has a bundle, in a folder inside of it.

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
        for job, place in zip(task.job.of_products(), folders(task), strict=True):
            place.write("job", job.to_dict())
    torch.set_num_threads(max(1, int(task.cpus)))
    device = torch.device("cuda" if torch.cuda.is_available() and task.gpus else "cpu")
    if device.type == "cuda" and task.gpus < 1:  # so that no trial takes what belongs to those beside it
        torch.cuda.set_per_process_memory_fraction(task.gpus)
    if device.type == "cpu" and (reason := native.prepare(task.node_cache)) and group.rank == 0:
        slow = f"training on a CPU takes about 1.1 times as long as it could: {reason}"
        directory.write("remark", {"remark": slow})

    def report_state(metrics: dict[str, Any], state: dict[str, Any]) -> None:
        metrics = dict(metrics)
        each = metrics.pop("products", None) or [{}]
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
            for place, own in zip(folders(task), each, strict=True):
                place.append_progress(metrics | own)
            if task.job.is_whole:
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

    def load_data() -> list[TrainingData]:
        data = [load_training_data(job, task.dataset, task.node_cache, task.layout) for job in task.job.of_products()]
        if task.identity not in (None, digest_of(one.identity for one in data)):
            raise DataError(
                f"{task.dataset}: the images of {task.job.category} are others than when the sweep began; stop it and "
                "resume it to read which"
            )
        return data

    try:
        use(task.job.architecture)  # the sweep's own configuration names it, not a file from elsewhere
        if task.latency_budget is not None:
            group.on_rank_zero(check_latency)
        data = group.on_every_rank(load_data)
        heard = {"report": report_state, "get_checkpoint": get_checkpoint, "group": group}
        fitted = fit_products(task.job, data, device=device, **heard)
        group.on_rank_zero(finish, task, fitted, data, device, timed_on())
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
