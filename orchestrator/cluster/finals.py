"""After a study: its winner is trained to the end by a Ray Train job of its own, and meets the test split once.

Where the trial that won was such a job itself, its model is the winner's: on a GPU a second training would give another
one than the one that was chosen. When asked, a winner is trained with several seeds, and every complete trial is
measured on the test split afterwards, for the report alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msad.cluster.job import WAITING_CPUS
from msad.cluster.trial_resources import TrialResources
from msad.cluster.workers.final_training import LOSSES, train_winner
from msad.cluster.workers.measuring import measure_trial, measure_winner
from msad.cluster.workers.task import Task
from msad.cluster.workers.worker_storage import fetch
from msad.errors import crash_reason, first_line

if TYPE_CHECKING:
    from ray import ObjectRef


@dataclass(frozen=True)
class Queued:
    """A task for the cluster, and what to call when it is given out and when it has ended.

    `source` is what the task's model is taken from, None where it is to be trained: a trial, or what one of several
    products makes of the training `together`, which comes first, once for all of them.
    """

    task: Task
    started: Callable[[], object]
    ended: Callable[[], object]
    source: Task | None = None
    together: Task | None = None


def run_finals(queue: Sequence[Queued], resources: TrialResources, train_storage: str) -> None:
    """Train and evaluate winners, as many at once as the cluster has room for; one that is trained is only evaluated.

    Each leaves its bundle, `test.json` (empty where the dataset has no test images), the tables of
    `evaluation.save_tables` and pictures in its folder. One that is trained and cannot be measured, because a test
    image cannot be read, leaves `unmeasured.json` with the reason: its model is as good as any. One that cannot be
    trained leaves `failure.json`.
    """
    import ray

    lost = [ray.exceptions.RayActorError]  # what a job's controller is an actor for
    train = ray.remote(num_cpus=WAITING_CPUS, max_retries=LOSSES, retry_exceptions=lost)(train_winner)
    measure = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=LOSSES)(measure_winner)

    of_all: dict[str, ObjectRef] = {}  # the trainings of several products, by their job's ID

    def submit(final: Queued) -> ObjectRef:
        task, source, failed = final.task.to_dict(), final.source and final.source.to_dict(), None
        if final.together:
            job_id = final.together.job_id
            failed = of_all.get(job_id) or train.remote(final.together.to_dict(), train_storage)
            of_all[job_id] = failed
        trained = train.remote(task, train_storage, source, failed, of_trial=not final.together)
        return measure.remote(task, trained)

    def failure(task: Task) -> str:
        return "unmeasured" if task.directory.read("result") else "failure"

    _run_all(queue, submit, resources.concurrency, failure)


def run_reports(queue: Sequence[Queued], resources: TrialResources) -> None:
    """Measure finished trials on the test split, for the report on a study whose winner is tested already.

    Each leaves `test_report.json` in its folder, or `test_report_failure.json`.
    """
    import ray

    measure = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=LOSSES)(measure_trial)

    def submit(trial: Queued) -> ObjectRef:
        return measure.remote(trial.task.to_dict())

    _run_all(queue, submit, resources.concurrency, lambda _task: "test_report_failure")


def _run_all(
    queue: Sequence[Queued], submit: Callable[[Queued], ObjectRef], concurrency: int, failure: Callable[[Task], str]
) -> None:
    """Submit tasks, so many at once, and wait for all; one that Ray could not run leaves a file of `failure`'s name."""
    import ray

    waiting, running = list(queue), {}
    while waiting or running:
        while waiting and len(running) < concurrency:
            one = waiting.pop(0)
            one.started()
            running[submit(one)] = one
        done, _ = ray.wait(list(running), timeout=1.0)
        for reference in done:
            one = running.pop(reference)
            task = one.task
            try:
                ray.get(reference)
                for made in (one.together, task):
                    if made and made.store:
                        fetch(made.store, made.directory)
            except OSError as error:
                reason = f"its files cannot be had from {task.store}: {first_line(error)}"
                task.directory.write(failure(task), {"reason": reason, "kind": "WorkerStorage"})
            except ray.exceptions.RayError as error:
                task.directory.write(failure(task), {"reason": crash_reason(str(error)), "kind": "RayError"})
            one.ended()
