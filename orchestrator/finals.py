"""After a study: its winner is trained to the end by a Ray Train job of its own, and meets the test split once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orchestrator.cluster import Allotment
from orchestrator.errors import USER_ERRORS
from orchestrator.task import Task


def run_finals(
    tasks: list[Task], allotment: Allotment, train_storage: str, listener: Callable[[str, str], None]
) -> None:
    """Train and evaluate the winners, as many at once as the cluster has room for.

    Each leaves its bundle, `test.json` and pictures in its folder, or `failure.json`. `listener(event, job_id)` hears
    of `start` and `end`. A winner that is trained already is only evaluated.
    """
    import ray

    # The task that waits for Ray Train needs next to nothing; the job itself asks for what it needs.
    train = ray.remote(num_cpus=0.01, max_retries=1)(_train)
    evaluate = ray.remote(num_cpus=allotment.cpus, num_gpus=allotment.gpus, max_retries=1)(_evaluate)
    waiting, running = list(tasks), {}
    while waiting or running:
        while waiting and len(running) < allotment.concurrency:
            task = waiting.pop(0)
            listener("start", task.job_id)
            trained = train.remote(task.to_dict(), train_storage)
            running[evaluate.remote(task.to_dict(), trained)] = task
        done, _ = ray.wait(list(running), timeout=1.0)
        for reference in done:
            task = running.pop(reference)
            try:
                ray.get(reference)
            except ray.exceptions.RayError as error:
                task.directory.write("failure", {"reason": str(error).strip().splitlines()[-1], "kind": "RayError"})
            listener("end", task.job_id)


def _train(task: dict[str, Any], train_storage: str) -> None:
    from orchestrator.job import train_job

    directory = Task.from_dict(task).directory
    (directory.path / "failure.json").unlink(missing_ok=True)
    if directory.read("result"):
        return
    try:
        train_job(task, train_storage)
    except USER_ERRORS as error:
        directory.write("failure", {"reason": str(error), "kind": type(error).__name__})


def _evaluate(task_values: dict[str, Any], _trained: None) -> None:
    """Measure a trained winner on the test split; the first time in a sweep that a test file is opened."""
    import torch

    from orchestrator.bundles import Bundle
    from orchestrator.evaluation import evaluate
    from orchestrator.pictures import save_evaluation

    task = Task.from_dict(task_values)
    if task.directory.read("failure"):
        return
    torch.set_num_threads(max(1, int(task.cpus)))
    try:
        bundle = Bundle.load(task.directory.bundle, device="cuda" if task.gpus else "cpu")
        evaluation = evaluate(bundle, task.dataset, task.job.category, task.cache)
        save_evaluation(evaluation, task.directory.path / "pictures")
        evaluation.scores.to_csv(task.directory.path / "test_scores.csv", index=False)
        task.directory.write("test", evaluation.metrics)
    except USER_ERRORS as error:
        task.directory.write("failure", {"reason": f"evaluation on the test split: {error}", "kind": "Evaluation"})


def final_id(study_key: str) -> str:
    """Return the job ID of a study's final training."""
    return f"{study_key.replace('/', '-')}-final"
