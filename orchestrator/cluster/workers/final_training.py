"""What a worker does for a winner: trains it as a Ray Train job, or takes over the model that its trial has left."""

from __future__ import annotations

import shutil
from typing import Any

from msad.cluster.workers.task import Task
from msad.cluster.workers.watchdog import NOTE
from msad.cluster.workers.worker_storage import remove_checkpoints, working_copy
from msad.errors import USER_ERRORS

LOSSES = 3  # of workers or nodes that a winner bears: its training is the longest and the one that counts


def train_winner(values: dict[str, Any], train_storage: str, trial_values: dict[str, Any] | None = None) -> None:
    """Leave a winner's bundle and `result.json` in its task's folder, or `failure.json`.

    `trial_values` is the trial whose model is the winner's, None where it is to be trained.
    """
    from msad.cluster.job import train_job

    with working_copy(Task.from_dict(values)) as (task, _):
        for name in ("failure.json", NOTE):  # of an earlier attempt of the sweep
            (task.directory.path / name).unlink(missing_ok=True)
        if task.directory.read("result"):
            remove_checkpoints(train_storage, task.job_id)  # of a driver that was killed before it could
            return
        if trial_values:
            with working_copy(Task.from_dict(trial_values)) as (trial, _):
                _take_over(trial, task)
            return
    failure = None
    try:
        train_job(values, train_storage, losses=LOSSES)
    except USER_ERRORS as error:
        failure = {"reason": str(error), "kind": type(error).__name__}
    if failure:
        with working_copy(Task.from_dict(values)) as (task, _):
            task.directory.write("failure", failure)


def _take_over(trial: Task, task: Task) -> None:
    """Make a trial's model a winner's: its bundle, curves and progress, and last the result, which names the trial."""
    from msad.bundle.bundle_files import FILES, amend

    source, target = trial.directory, task.directory
    target.bundle.mkdir(parents=True, exist_ok=True)
    for name in FILES:  # and not what the driver may be writing there, which notes the trial's run in its bundle
        shutil.copyfile(source.bundle / name, target.bundle / name)
    amend(target.bundle, {"job_id": task.job_id, "trial": trial.job_id})
    shutil.copytree(source.path / "pictures", target.path / "pictures", dirs_exist_ok=True)
    for name in ("job.json", "progress.jsonl"):
        shutil.copyfile(source.path / name, target.path / name)
    target.write("result", {**source.read("result"), "trial": trial.job_id})
