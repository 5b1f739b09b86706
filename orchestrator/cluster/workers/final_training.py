"""What a worker does for a winner: trains it as a Ray Train job, or takes over the model that its trial has left."""

from __future__ import annotations

import shutil
from typing import Any

from msad.cluster.workers.task import Task
from msad.cluster.workers.watchdog import NOTE
from msad.cluster.workers.worker_storage import remove_checkpoints, working_copy
from msad.errors import USER_ERRORS

LOSSES = 3  # of workers or nodes that a winner bears: its training is the longest and the one that counts


def train_winner(
    values: dict[str, Any],
    train_storage: str,
    source_values: dict[str, Any] | None = None,
    failed: dict[str, Any] | None = None,
    *,
    of_trial: bool = True,
) -> dict[str, Any] | None:
    """Leave a winner's bundle and `result.json` in its task's folder, or `failure.json`, which is returned too.

    `source_values` is what the winner's model is taken from: its trial, or, not `of_trial`, the training of all
    products, with `failed` where that has failed. None where it is to be trained.
    """
    from msad.cluster.job import train_job

    with working_copy(Task.from_dict(values)) as (task, _):
        for name in ("failure.json", NOTE):  # of an earlier attempt of the sweep
            (task.directory.path / name).unlink(missing_ok=True)
        if task.directory.read("result"):
            remove_checkpoints(train_storage, task.job_id)  # of a driver that was killed before it could
            return None
        if failed:
            task.directory.write("failure", failed)
            return failed
        if source_values:
            with working_copy(Task.from_dict(source_values)) as (source, _):
                _take_over(source, task, of_trial)
            return None
    failure = None
    try:
        train_job(values, train_storage, losses=LOSSES)
    except USER_ERRORS as error:
        failure = {"reason": str(error), "kind": type(error).__name__}
    with working_copy(Task.from_dict(values)) as (task, _):
        if failure:
            task.directory.write("failure", failure)
        return task.directory.read("failure")


def _take_over(source: Task, task: Task, of_trial: bool) -> None:
    """Make a job's model a winner's: its bundle, curves and progress, and last the result, which names a trial."""
    from msad.bundle.bundle_files import FILES, amend

    origin, target, trial = source.directory, task.directory, {"trial": source.job_id} if of_trial else {}
    target.bundle.mkdir(parents=True, exist_ok=True)
    for name in FILES:  # and not what the driver may be writing there, which notes the trial's run in its bundle
        shutil.copyfile(origin.bundle / name, target.bundle / name)
    amend(target.bundle, {"job_id": task.job_id, **trial})
    shutil.copytree(origin.path / "pictures", target.path / "pictures", dirs_exist_ok=True)
    for name in ("job.json", "progress.jsonl"):
        shutil.copyfile(origin.path / name, target.path / name)
    target.write("result", {**origin.read("result"), **trial})
