"""`msad` with a clock at the landmarks of a sweep, for `overhead.py`: python overhead_probe.py JOBS WORDS...

JOBS is `trained`, or `recorded` for trials that report figures instead of training. No winner is trained. Every
landmark is a line of the file in $OVERHEAD_MARKS: its name, the time, the processor seconds of this process and of the
whole machine, and this process's memory so far.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

PROGRESS = [{"epoch": n, "train_loss": 1 / n, "validation_score": n / 4, "best_objective": n / 4} for n in (1, 2)]
RESULT = {"epoch": 2, "threshold": 0.5, "parameters": 9, "score": 0.5}
TEST = {
    **dict.fromkeys(("image_auroc", "image_prauc", "image_prevalence", "pixel_auroc", "aupro_30"), 0.5),
    **dict.fromkeys(("false_positives", "good_images", "misses", "defective_images"), 1),
}


def mark(name: str, **values: Any) -> None:
    """Write a landmark."""
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in KiB
    processor = {"processor": time.process_time(), "processor_of_all": processor_of_all()}
    values |= {"name": name, "time": time.time(), "memory": memory} | processor
    with Path(os.environ["OVERHEAD_MARKS"]).open("a") as file:
        file.write(json.dumps(values) + "\n")


def processor_of_all() -> float:
    """Return the processor seconds of the whole machine, for processes that end take theirs with them."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system + times.irq + times.softirq


def timed(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return a function that marks its begin, `NAME-begin`, and its end, `NAME`, with what it took by both clocks."""

    def call(*arguments: Any, **options: Any) -> Any:
        mark(f"{name}-begin")
        began = time.time(), time.process_time()
        try:
            return function(*arguments, **options)
        finally:
            mark(name, seconds=time.time() - began[0], processor_seconds=time.process_time() - began[1])

    return call


def watch_worker() -> None:
    """Mark a worker's imports, its first optimiser step and the time of each training."""
    mark("worker")
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from msad.cluster.workers import job_worker

    mark("worker-imports")
    if not hasattr(job_worker, "watched"):
        job_worker.watched = register_optimizer_step_post_hook(lambda *_: (mark("step"), job_worker.watched.remove()))
        job_worker.fit_products = timed(job_worker.fit_products, "fit")


def direct_trial(config: dict[str, Any]) -> None:
    """As `msad.cluster.job.direct_trial`."""
    from msad.cluster.job import direct_trial

    watch_worker()
    direct_trial(config)


def train_trial(config: dict[str, Any]) -> None:
    """As `msad.cluster.job.train_trial`."""
    from msad.cluster import job

    job._train_worker = train_worker
    job.train_trial(config)


def train_worker(config: dict[str, Any]) -> None:
    from msad.cluster.job import _train_worker

    watch_worker()
    _train_worker(config)


def recorded_trial(config: dict[str, Any]) -> None:
    """Leave in the job's folder, and report, what a short training would."""
    from ray import tune

    from msad.cluster.workers.task import Task

    task = Task.from_dict(config["task"])
    task.directory.write("job", task.job.to_dict())
    for metrics in PROGRESS:
        task.directory.append_progress(metrics)
        tune.report({**metrics, "objective": metrics["validation_score"]})
    task.directory.write("result", RESULT)


def recorded_finals(queue: list[Any], _resources: Any, _storage: str) -> None:
    for final in queue:
        final.started()
        final.task.directory.write("result", RESULT)
        final.task.directory.write("test", TEST)
        final.ended()


def main(jobs: str, words: list[str]) -> None:
    """Run `msad WORDS` with its clock."""
    from msad.cluster import connection, sweep_tuner
    from msad.sweep import job_files, launch, running_sweep, winners
    from msad.terminal import cli
    from msad.tracking import store as tracking_store

    mark("imports")
    launch.prepare = timed(launch.prepare, "checks")
    connection.connect = timed(connection.connect, "ray")
    tracking_store.connect = timed(tracking_store.connect, "mlflow")
    running = running_sweep.RunningSweep
    running.run = timed(running.run, "run")
    running._search = timed(running._search, "searched")
    started = job_files.TrialFiles.started

    def heard(self: Any, study: Any, job_id: str) -> None:
        started(self, study, job_id)
        mark("suggested", study=study.key)

    job_files.TrialFiles.started = heard
    winners.run_finals = recorded_finals
    sweep_tuner.direct_trial = recorded_trial if jobs == "recorded" else direct_trial
    sweep_tuner.train_trial = train_trial
    sys.argv = ["msad", *words]
    try:
        cli.main()
    finally:
        mark("end")


if __name__ == "__main__":
    mark("process")
    import overhead_probe  # Ray finds its functions in the workers by this name, not as `__main__`

    overhead_probe.main(sys.argv[1], sys.argv[2:])
