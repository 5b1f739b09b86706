"""The two executors of a job: Ray Train (a worker process per job) and direct (inside a reused Tune trial).

No torch at the top: Ray imports this module in helper processes that never train (it costs seconds in each).
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from msad.cluster.ray_private import lean_trainer
from msad.cluster.workers.task import Task
from msad.cluster.workers.worker_storage import remove_checkpoints, working_copy
from msad.errors import DiskFull, TrainingError, full_disk
from msad.workspace import write_atomically

# Train polls its workers every 2 s by default, and every report waits for a poll; the preemption watcher is a process
# more per job. Both were measured to dominate a short job.
TRAIN_ENVIRONMENT = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}

WAITING_CPUS, ROOM_FOR_WAITING = 0.0001, 0.01
"""What the process that waits for a Ray Train job asks for (Tune refuses 0), and what a job's workers leave for those.

Where nodes are lost, the processes of all their jobs may come to wait on one node of a single CPU.
"""


def direct_trial(config: dict[str, Any]) -> None:
    """Run a task inside the Tune trial itself; its checkpoint lies in the job's folder."""
    from ray import tune

    from msad.cluster.workers.attempt import attempt
    from msad.cluster.workers.job_worker import run

    with working_copy(Task.from_dict(config["task"])) as (task, upload):
        checkpoint = task.directory.checkpoint

        def report(metrics: dict[str, Any], state: Path | None) -> None:
            if state is not None:
                write_atomically(checkpoint, state.read_bytes())
            upload()
            tune.report(metrics)

        attempt(run, task, report=report, resume_from=lambda: checkpoint if checkpoint.exists() else None)
        checkpoint.unlink(missing_ok=True)


def train_trial(config: dict[str, Any]) -> None:
    """Run a task as a Ray Train job of its own, from inside a Tune trial that only waits for it."""
    from ray import tune
    from ray.train import UserCallback

    class ReportToTune(UserCallback):
        """Passes a report on; Ray's own callback does it through a process per trial, for a controller elsewhere."""

        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            tune.report(metrics[0])

    train_job(config["task"], config["train_storage"], callbacks=[ReportToTune()])


def train_job(task: dict[str, Any], storage: str, callbacks: list[Any] | None = None, losses: int = 1) -> None:
    """Run a task as a Ray Train job, and wait for it; so many losses of its worker cost it nothing but time.

    The Train run is named after the job, which is how a second attempt, even by another driver, finds the checkpoint.
    With `callbacks`, as a Tune trial has them, its controller runs in this process (`lean_trainer`).

    Raises
    ------
    TrainingError
        The worker was lost once more.
    DiskFull
        It could not write.
    """
    os.environ.update(TRAIN_ENVIRONMENT)  # read by the controller, which inherits them
    import ray.train

    cpus = max(WAITING_CPUS, task["cpus"] - ROOM_FOR_WAITING)
    resources = {"CPU": cpus, "GPU": task["gpus"], "memory": task["memory"]}
    backend = None
    if task["workers"] > 1:  # a worker alone needs no process group, which would listen on all addresses of its node
        from ray.train.torch import TorchConfig

        backend = TorchConfig(backend="cpu:gloo,cuda:nccl" if task["gpus"] else "gloo")
    trainer = lean_trainer(controlled_here=bool(callbacks))(
        _train_worker,
        train_loop_config=task,
        backend_config=backend,
        scaling_config=ray.train.ScalingConfig(
            num_workers=task["workers"],
            use_gpu=bool(task["gpus"]),
            resources_per_worker={name: amount for name, amount in resources.items() if amount},
        ),
        run_config=ray.train.RunConfig(
            name=task["job_id"],
            storage_path=storage,
            callbacks=callbacks,
            failure_config=ray.train.FailureConfig(max_failures=losses),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        if full := full_disk(error):  # a type passes on to the next process, a cause does not
            raise DiskFull(str(full)) from error
        raise TrainingError(f"{task['job_id']}: the training worker failed {losses + 1} times: {error}") from error
    remove_checkpoints(storage, task["job_id"])  # the bundle is what is kept


def _train_worker(config: dict[str, Any]) -> None:
    import ray.train

    from msad.cluster.nodes import require_sweep
    from msad.cluster.workers.attempt import attempt
    from msad.cluster.workers.job_worker import run
    from msad.training.worker_group import WorkerGroup

    shared, context = Task.from_dict(config), ray.train.get_context()
    require_sweep(shared)
    with working_copy(shared) as (task, upload), tempfile.TemporaryDirectory() as folder:

        def report(metrics: dict[str, Any], state: Path | None) -> None:
            upload()
            if state is None:
                ray.train.report(metrics)
            else:
                ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(state.parent))

        def resume_from() -> Path | None:
            checkpoint = ray.train.get_checkpoint()
            return Path(checkpoint.to_directory(folder)) / "checkpoint.pt" if checkpoint else None

        group = WorkerGroup(context.get_world_rank(), context.get_world_size())
        attempt(run, task, report=report, group=group, resume_from=resume_from)
