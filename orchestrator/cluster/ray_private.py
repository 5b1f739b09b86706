"""All that is used of Ray though it promises nobody to keep it: what has no public way, each with its reason.

A newer Ray may change any of it. `tests/cluster/test_ray_private.py` says in seconds what has changed and which files
need it, and that no other file uses anything private. No Ray and no torch at the top: helper processes import this.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
    from ray.tune.experiment import Trial
    from ray.util.placement_group import PlacementGroup

# Each starts a process per job: one hands out Ray Data's datasets, which there are none of; the other returns what a
# lost job holds, but only with Ray's dashboard, and not what Ray had moved to another node (`orphaned_groups` does).
NEEDLESS_CALLBACKS = ("DatasetsCallback", "PlacementGroupCleanerCallback")


def sockets_in(folder: str | None) -> dict[str, Any]:
    """Return the argument of `ray.init` for a folder of Ray's sockets and logs; None: where Ray puts them itself."""
    return {"_temp_dir": folder}


def keep_credentials_from_trials() -> None:
    """Have Ray Tune pass no AWS credentials on to trials: Ray writes them into its logs and shows them.

    Workers have those of their node: here the environment of this process, on a cluster its own.
    """
    from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE

    ENV_VARS_TO_PROPAGATE.difference_update([name for name in ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")])


def take_lost_workers_for_lost_actors() -> None:
    """Have the loss of a worker cost its trial an attempt, however Ray names it.

    Ray Tune ends with all trials where Ray ends the worker of one because its node is short of memory: that error is
    of none of the kinds it expects.
    """
    from ray.air.execution._internal import actor_manager
    from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError
    from ray.tune.execution import tune_controller

    for module in (actor_manager, tune_controller):
        module.RayActorError = (RayActorError, OutOfMemoryError, NodeDiedError, WorkerCrashedError)


def forget_failures(trial: Trial) -> None:
    """Give a trial of Ray Tune all its attempts again; there is a setting for how many, but for all epochs together."""
    trial.run_metadata.num_failures = 0


def crash_of(trial: Trial) -> BaseException | None:
    """Return what a trial crashed with, where it can be read; its `get_error` knows it only once it has been copied."""
    from ray import cloudpickle

    file = Path(trial.pickled_error_file or "")
    try:
        return cloudpickle.loads(file.read_bytes()) if file.is_file() else None
    except Exception:  # of a class that only its worker has
        return None


def crash_words(trial: Trial) -> str:
    """Return Ray Tune's account of a trial's crashes, empty where there is none; see `crash_of`."""
    file = Path(trial.error_file or "")
    return file.read_text() if file.is_file() else ""


def lean_trainer(*, controlled_here: bool) -> type[DataParallelTrainer]:
    """Return Ray Train's trainer without needless processes; Ray has no setting for either.

    With `controlled_here` the controller runs in the process that calls `fit`, a Tune trial's actor, not in an actor
    of its own for every trial. The process takes the next trial too, so what a controller imports is paid for once; it
    did nothing but wait. Where it is killed, its workers go with it, and `orphaned_groups` finds what they held.
    """
    from ray.train.v2._internal.execution.controller import TrainController
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    class LeanTrainer(DataParallelTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            return [one for one in super()._create_default_callbacks() if type(one).__name__ not in NEEDLESS_CALLBACKS]

        def _initialize_and_run_controller(self, **parts: Any) -> Any:
            if not controlled_here:
                return super()._initialize_and_run_controller(**parts)

            async def control() -> Any:
                controller = TrainController(**parts)
                try:
                    await controller.run()
                except SystemExit:  # raised in a report by Tune, to end a trial early
                    if workers := controller.get_worker_group():
                        workers.shutdown()
                    raise
                return controller.get_result()

            return asyncio.run(control())

    return LeanTrainer


def orphaned_groups(job_id: str) -> Iterator[PlacementGroup]:
    """Yield the placement groups that dead actors of a Ray job have left; the job's own process's are not among them.

    The public table of placement groups does not tell whose one is. Any error of Ray's tables may be raised.
    """
    from ray._private.state import state
    from ray._raylet import PlacementGroupID
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData
    from ray.util.placement_group import PlacementGroup

    for entry in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(entry)
        of_actor = group.creator_job_id == bytes.fromhex(job_id) and group.creator_actor_id.strip(b"\xff")
        if of_actor and group.creator_actor_dead and group.state != PlacementGroupTableData.REMOVED:
            yield PlacementGroup(PlacementGroupID(group.placement_group_id))
