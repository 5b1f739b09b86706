"""What an earlier winner has left where another is to be trained: a resumed sweep was given more trials since."""

from __future__ import annotations

import json
from itertools import count

from msad.cluster.workers.object_store import remove_folder
from msad.cluster.workers.task import Task
from msad.cluster.workers.worker_storage import remove_checkpoints
from msad.training.job_config import JobConfig
from msad.training.parameters import written_out
from msad.workspace import JobDirectory


def set_earlier_winner_aside(task: Task, train_storage: str) -> None:
    """Move what a task's folder holds of another winner to `JOB_ID.before1` and so on, beside it; else do nothing."""
    directory = task.directory
    kept = directory.read("job") or (JobDirectory(directory.bundle).read("bundle") or {}).get("job")
    try:
        if kept is None or _alike(JobConfig.from_dict(kept), task.job):
            return
    except (ValueError, TypeError):  # a version of msad whose jobs had other settings: what it has trained stays
        return
    places = (directory.path.with_name(f"{task.job_id}.before{number}") for number in count(1))
    directory.path.rename(next(place for place in places if not place.exists()))
    remove_checkpoints(train_storage, task.job_id)
    if task.store:
        remove_folder(task.store)


def _alike(one: JobConfig, other: JobConfig) -> bool:
    """Return whether two jobs train alike, the one with defaults left out where the other has them written out."""
    first, second = (json.dumps(written_out(job).to_dict(), sort_keys=True) for job in (one, other))
    return first == second
