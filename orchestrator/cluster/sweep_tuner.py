"""The Ray Tune experiment of a sweep: `sweep_search` hands out its trials, `trial_scheduler` sees to those that run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ray import tune

from msad.cluster.job import WAITING_CPUS, direct_trial, train_trial
from msad.cluster.ray_private import keep_credentials_from_trials, take_lost_workers_for_lost_actors
from msad.cluster.sweep_search import MakeTask, SweepSearch, TrialListener
from msad.cluster.trial_resources import TrialResources
from msad.cluster.trial_scheduler import Ending, LossNotes, OptunaPruning
from msad.errors import DiskFull
from msad.search.study import Study
from msad.workspace import Workspace


def search_all(
    studies: Sequence[Study],
    resources: TrialResources,
    workspace: Workspace,
    train_storage: str,
    make_task: MakeTask,
    listener: TrialListener,
    say: Callable[[str], object],
) -> None:
    """Search until every study has its trials, or the user or a lost node interrupts Tune, which says nothing of it.

    See `SweepSearch` for `make_task` and `listener`; `say` is told of workers that are lost.

    Raises
    ------
    DiskFull
        A worker could not write.
    Exception
        Whatever this process itself has met while it heard of trials: an error of Optuna's database above all.
    """
    search = SweepSearch(studies, make_task, {"train_storage": train_storage}, listener)
    if resources.executor == "direct":
        each = {"CPU": resources.cpus, "GPU": resources.gpus, "memory": resources.memory}
        trainable = tune.with_resources(direct_trial, each)
    else:
        # The trial only waits for its Ray Train job, which asks for the real resources.
        trainable = tune.with_resources(train_trial, {"CPU": WAITING_CPUS})
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            metric="objective",
            mode="max",
            search_alg=search,
            scheduler=OptunaPruning(search),
            num_samples=sum(study.most_left for study in studies),
            max_concurrent_trials=resources.concurrency,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=time.strftime("%Y%m%d-%H%M%S"),
            storage_path=str(workspace.root / "tune"),
            failure_config=tune.FailureConfig(max_failures=2 if resources.executor == "direct" else 1),
            callbacks=[LossNotes(search, say)],
            stop=Ending(search),
            verbose=0,
        ),
    )
    keep_credentials_from_trials()
    take_lost_workers_for_lost_actors()
    try:
        tuner.fit()
    except Exception:
        # Tune's account of an error of ours; or it had no trial, because what was left had ended without being told.
        if not search.broken and not all(study.finished for study in studies):
            raise
    if search.broken:
        raise search.broken
    if search.full_disk:
        raise DiskFull(
            f"a trial could not write: {search.full_disk}\nFree some space there, then go on with "
            f"`msad search --resume {workspace.root.name} --storage {workspace.root.parent}`"
        )
