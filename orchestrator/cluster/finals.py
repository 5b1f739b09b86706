"""After a study: its winner is trained to the end by a Ray Train job of its own, and meets the test split once.

Where the trial that won was such a job itself, its model is the winner's: on a GPU a second training would give another
one than the one that was chosen. When asked, a winner is trained with several seeds, and every complete trial is
measured on the test split afterwards, for the report alone.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from itertools import count
from typing import TYPE_CHECKING, Any

from msad.cluster.connection import TrialResources
from msad.cluster.job import WAITING_CPUS
from msad.cluster.workers.object_store import remove_folder
from msad.cluster.workers.task import Task
from msad.cluster.workers.worker_storage import fetch, remove_checkpoints
from msad.data_io.errors import NoTestImages
from msad.errors import USER_ERRORS, BundleError, crash_reason, first_line
from msad.training.job_config import JobConfig
from msad.training.parameters import written_out
from msad.workspace import JobDirectory

if TYPE_CHECKING:
    from ray import ObjectRef

    from msad.bundle.evaluation import Evaluation

Listener = Callable[[str, str], None]
LOSSES = 3  # of workers or nodes that a winner bears: its training is the longest and the one that counts


def run_finals(
    tasks: list[Task], resources: TrialResources, train_storage: str, listener: Listener, trained: Mapping[str, Task]
) -> None:
    """Train and evaluate the winners, as many at once as the cluster has room for.

    `trained` has, by the job IDs of those whose trial has left their model already, that trial.

    Each leaves its bundle, `test.json` (empty where the dataset has no test images), the tables of
    `evaluation.save_tables` and pictures in its folder. One that is trained and cannot be measured, because a test
    image cannot be read, leaves `unmeasured.json` with the reason: its model is as good as any. One that cannot be
    trained leaves `failure.json`. `listener(event, job_id)` hears of `start` and `end`. A winner that is trained
    already is only evaluated.
    """
    import ray

    lost = [ray.exceptions.RayActorError]  # what a job's controller is an actor for
    train = ray.remote(num_cpus=WAITING_CPUS, max_retries=LOSSES, retry_exceptions=lost)(_train)
    evaluate = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=LOSSES)(_evaluate)

    def submit(task: Task) -> ObjectRef:
        trial = trained[task.job_id].to_dict() if task.job_id in trained else None
        return evaluate.remote(task.to_dict(), train.remote(task.to_dict(), train_storage, trial))

    def failure(task: Task) -> str:
        return "unmeasured" if task.directory.read("result") else "failure"

    _run_all(tasks, submit, resources.concurrency, failure, listener)


def run_reports(tasks: list[Task], resources: TrialResources, listener: Listener) -> None:
    """Measure finished trials on the test split, for the report on a study whose winner is tested already.

    Each leaves `test_report.json` in its folder, or `test_report_failure.json`; `listener` as in `run_finals`.
    """
    import ray

    report = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=LOSSES)(_report)
    failure = "test_report_failure"
    _run_all(tasks, lambda task: report.remote(task.to_dict()), resources.concurrency, lambda _task: failure, listener)


def make_way(task: Task, train_storage: str) -> None:
    """Set aside what a winner has left in a task's folder, where another has won since: more trials were given.

    The folder stays beside the new one, as `JOB_ID.before1` and so on.
    """
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


def _run_all(
    tasks: list[Task],
    submit: Callable[[Task], ObjectRef],
    concurrency: int,
    failure: Callable[[Task], str],
    listener: Listener,
) -> None:
    """Submit tasks, so many at once, and wait for all; one that Ray could not run leaves a file of `failure`'s name."""
    import ray

    waiting, running = list(tasks), {}
    while waiting or running:
        while waiting and len(running) < concurrency:
            task = waiting.pop(0)
            listener("start", task.job_id)
            running[submit(task)] = task
        done, _ = ray.wait(list(running), timeout=1.0)
        for reference in done:
            task = running.pop(reference)
            try:
                ray.get(reference)
                if task.store:
                    fetch(task.store, task.directory)
            except OSError as error:
                reason = f"its files cannot be had from {task.store}: {first_line(error)}"
                task.directory.write(failure(task), {"reason": reason, "kind": "WorkerStorage"})
            except ray.exceptions.RayError as error:
                task.directory.write(failure(task), {"reason": crash_reason(str(error)), "kind": "RayError"})
            listener("end", task.job_id)


def _train(values: dict[str, Any], train_storage: str, trial_values: dict[str, Any] | None = None) -> None:
    from msad.cluster.job import train_job
    from msad.cluster.workers.watchdog import NOTE
    from msad.cluster.workers.worker_storage import remove_checkpoints, working_copy

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


def _evaluate(values: dict[str, Any], _trained: None) -> None:
    """Measure a trained winner on the test split; the first time in a sweep that a test file is opened."""
    from msad.bundle.bundle_files import amend
    from msad.bundle.evaluation import save_tables
    from msad.cluster.workers.worker_storage import working_copy
    from msad.pictures.gallery import save_evaluation

    with working_copy(Task.from_dict(values)) as (task, _):
        if task.directory.read("failure"):
            return
        task.directory.clear_unfinished()
        (task.directory.path / "unmeasured.json").unlink(missing_ok=True)
        try:
            evaluation = _measure(task)
            save_evaluation(evaluation, task.directory.path / "pictures")
            save_tables(evaluation, task.directory.path, prefix="test_")
            per_type = evaluation.per_defect_type.to_dict(orient="index")
            more = {"per_defect_type": per_type, "remarks": evaluation.remarks}
            amend(task.directory.bundle, {"test": {**evaluation.metrics, **more}})
            task.directory.write("test_remarks", {"remarks": evaluation.remarks})
            task.directory.write("test", evaluation.metrics)
        except NoTestImages:  # good images alone are enough to search
            amend(task.directory.bundle, {"test": {}})
            task.directory.write("test", {})
        except BundleError as error:  # there is no model to deliver
            task.directory.write("failure", {"reason": f"evaluation on the test split: {error}", "kind": "Evaluation"})
        except USER_ERRORS as error:
            amend(task.directory.bundle, {"unmeasured": str(error)})
            task.directory.write("unmeasured", {"reason": str(error), "kind": type(error).__name__})


def _report(values: dict[str, Any]) -> None:
    from msad.cluster.workers.worker_storage import working_copy

    with working_copy(Task.from_dict(values)) as (task, _):
        task.directory.clear_unfinished()
        (task.directory.path / "test_report_failure.json").unlink(missing_ok=True)
        try:
            task.directory.write("test_report", _measure(task).metrics)
        except USER_ERRORS as error:
            task.directory.write("test_report_failure", {"reason": str(error), "kind": "Evaluation"})


def _measure(task: Task) -> Evaluation:
    import torch

    from msad.bundle.bundles import Bundle
    from msad.bundle.evaluation import evaluate
    from msad.models.registry import use

    torch.set_num_threads(max(1, int(task.cpus)))
    use(task.job.architecture)  # the sweep's own configuration names it, not a file from elsewhere
    bundle = Bundle.load(task.directory.bundle, device="cuda" if task.gpus else "cpu")
    return evaluate(bundle, task.dataset, task.job.category, task.node_cache, layout=task.layout)
