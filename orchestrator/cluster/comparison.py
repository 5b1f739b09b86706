"""Two bundles scored beside one another on the images of a sweep, by Ray (`bundle.rescoring` says how)."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msad.bundle import bundle_files
from msad.cluster.trial_resources import TrialResources
from msad.cluster.workers.final_training import LOSSES
from msad.cluster.workers.task import Task
from msad.errors import USER_ERRORS, crash_reason


def compare_by_ray(task: Task, champion: Path, resources: TrialResources) -> Mapping[str, Any]:
    """Score a task's bundle and the one in a folder, in a Ray task that gets what one worker of a trial gets.

    Returns what `compare_on` does.
    """
    import ray

    # By value: a worker may share neither a folder nor a way to MLflow with this process.
    files = {name: (champion / name).read_bytes() for name in bundle_files.FILES if (champion / name).is_file()}
    remote = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=LOSSES)(_compare)
    try:
        return ray.get(remote.remote(task.to_dict(), files))
    except ray.exceptions.RayError as error:
        return {"reason": crash_reason(str(error))}


def _compare(values: dict[str, Any], champion: dict[str, bytes]) -> dict[str, Any]:
    """Score a trained task's bundle and another on the task's images, in a worker; see `compare_on`."""
    import torch

    from msad.cluster.workers.worker_storage import working_copy
    from msad.models.registry import use

    with working_copy(Task.from_dict(values)) as (task, _), tempfile.TemporaryDirectory() as folder:
        for name, content in champion.items():
            (Path(folder) / name).write_bytes(content)
        torch.set_num_threads(max(1, int(task.cpus)))
        use(task.job.architecture)  # the sweep's own configuration names it, not a file from elsewhere
        return compare_on(task, Path(folder), "cuda" if task.gpus else "cpu")


def compare_on(task: Task, champion: Path, device: str) -> dict[str, Any]:
    """Return `challenger` and `champion`, both scores, and `on` what, in words; or a `reason` why there are none."""
    from msad.bundle.bundles import Bundle
    from msad.bundle.rescoring import rescore

    try:
        bundles = [Bundle.load(place, device) for place in (task.directory.bundle, champion)]
        found = rescore(*bundles, task.dataset, task.layout, task.cache)
    except USER_ERRORS as error:
        return {"reason": str(error)}
    return {"challenger": found.challenger, "champion": found.champion, "on": found.words()}
