"""A sweep: every study that one command launches, on one cluster, from the check of the data to the leaderboard."""

from __future__ import annotations

import functools
import shlex
from pathlib import Path

from rich.console import Console

from msad.cluster import connection
from msad.cluster.disk_space import cache_needs, disk_space_problem
from msad.cluster.nodes import check_nodes
from msad.cluster.trial_packing import pack_trials
from msad.cluster.workers.object_store import below
from msad.cluster.workers.worker_storage import claim
from msad.data_io.array_cache import default_cache_dir
from msad.errors import ConfigError, Interrupted, ResourceError, TrackingError
from msad.models.errors import did_you_mean
from msad.progress import reading_files
from msad.report.sweep_run import counted
from msad.search.config import SweepConfig, load, make_config
from msad.search.preflight import prepare
from msad.search.resuming import Resumed, take_up
from msad.search.study_storage import open_studies, silence, studies_told
from msad.sweep.outcome import Outcome
from msad.sweep.running_sweep import RunningSweep
from msad.tracking import store as tracking_store
from msad.tracking.artifacts import settle_artifacts
from msad.tracking.challenge import settle
from msad.tracking.model_store import deliver_files
from msad.tracking.moved import follow
from msad.tracking.run_mirror import set_aside
from msad.tracking.tracker import SILENT_SECONDS, Tracker
from msad.workspace import Workspace, write_atomically

# How long a sweep waits for MLflow at its end while deliveries fail, and while one does not answer.
FINISHED, INTERRUPTED = (60.0, SILENT_SECONDS), (10.0, 10.0)


def start(config: SweepConfig) -> Outcome:
    """Run a new sweep to its end.

    Raises
    ------
    ConfigError
        The name is taken, or a setting does not suit the data or the architectures.
    msad.data_io.errors.DataError, TrackingError, ResourceError
        The data has errors; MLflow does not answer; the cluster or disk has too little. All before a trial starts.
    Interrupted
        The user stopped it.
    """
    config = resolved(config)
    workspace = Workspace(config.storage / config.name)
    if workspace.config.exists():
        raise ConfigError(
            f"a sweep named {config.name!r} exists in {workspace.root}: go on with --resume {config.name}, "
            "or choose another --name"
        )
    return _run(config, workspace)


def resume(
    name: str,
    storage: Path,
    address: str | None = None,
    *,
    tracking_uri: str | None = None,
    dataset: Path | None = None,
    trials: int | None = None,
    restart_changed: bool = False,
) -> Outcome:
    """Finish what is missing of a sweep that was interrupted, whatever stopped it; see `start` for the errors.

    What it runs is what it began with (`msad.search.sweep_plan`), whatever the defaults are now. Its folder may have
    been moved, alone or with what lay beside it (`msad.tracking.moved`).

    Parameters
    ----------
    name, storage
        The folder's name, and where it lies.
    address
        Of another Ray cluster than it ran on before, which has to reach the same storage.
    tracking_uri
        Where its MLflow store is now; what that does not have of the sweep is delivered to it.
    dataset
        Where its images are now.
    trials
        How many each study is to have now, not fewer than before; None leaves it.
    restart_changed
        Where images have changed, start the studies on them anew; otherwise the sweep is refused with a ConfigError
        that names the first of them.
    """
    workspace = Workspace(storage.expanduser().resolve() / name)
    if not workspace.config.exists():
        names = sorted(path.parent.name for path in workspace.root.parent.glob("*/sweep.yaml"))
        hint = did_you_mean(name, names) if names else f"; there is no sweep in {workspace.root.parent} (see --storage)"
        raise ConfigError(f"no sweep named {name!r}{hint}")
    config = make_config({**load(workspace.config), **({"address": address} if address else {})})
    config = follow(config, workspace, tracking_uri, dataset)
    return _run(config, workspace, anywhere=bool(tracking_uri), trials=trials, restart_changed=restart_changed)


def resolved(config: SweepConfig) -> SweepConfig:
    """Return the configuration with absolute paths and addresses, so that it means the same from any folder."""
    return config.model_copy(
        update={
            "dataset": config.dataset.expanduser().resolve(),
            "storage": config.storage.expanduser().resolve(),
            "tracking_uri": config.tracking_uri or tracking_store.default_tracking_uri(),
        }
    )


def _run(
    config: SweepConfig,
    workspace: Workspace,
    *,
    anywhere: bool = True,
    trials: int | None = None,
    restart_changed: bool = False,
) -> Outcome:
    """Run what is missing of a sweep, all of it where it is new; see `resume` for the options of one that is not.

    `anywhere` says whether a store that does not know the sweep yet may be written to.
    """
    cache, new = default_cache_dir(), not workspace.config.exists()
    if new:  # before the lock, which makes its folder
        with reading_files("Checking the images"):
            resumed = Resumed.whole(config, prepare(config, cache))
    client = tracking_store.connect(config.tracking_uri, create=anywhere)
    experiment = tracking_store.find_experiment(client, config.name, config.tracking_uri, workspace.sweep_id)
    if experiment is None and not anywhere:
        raise TrackingError(
            f"{config.tracking_uri} has nothing of the sweep in {workspace.root}: was it moved, or its experiment "
            "removed? Say where it is with --tracking-uri; a store named so that does not have the sweep gets all of it"
        )
    silence()
    with workspace.lock():
        if not new:  # before Ray is started: can what was begun be gone on with?
            workspace.check_jobs()
            open_studies(workspace)
            with studies_told(workspace), reading_files("Checking the images"):
                resumed = take_up(config, workspace, cache, trials=trials, restart_changed=restart_changed)
        config, plan = resumed.config, resumed.plan
        kept = cache_needs(plan, resumed.going_on, config.final_seeds)
        if not config.address and (problem := disk_space_problem(kept, cache)):
            raise ResourceError(problem)
        if experiment:
            settle_artifacts(config.tracking_uri, experiment)
        resources = connection.connect(config)
        store = config.worker_storage
        if store:
            claim(store, config.name, new=new)
        check_nodes(workspace.root, config.dataset, below(store, config.name) if store else None, kept)
        experiment_id = tracking_store.open_experiment(client, config.name, config.tracking_uri, workspace.claim_id())
        plan.write(workspace)
        for study in (study for study in plan.studies if study.generation > 1):
            for key, id in {study.key: study.id, **study.rows}.items():
                set_aside(client, experiment_id, key, id)
        write_atomically(workspace.config, config.to_yaml().encode())
        console = Console(stderr=True, markup=False, emoji=False)  # what people name is shown as it is
        say = functools.partial(console.print, highlight=False, soft_wrap=True)
        tracker = Tracker(client, experiment_id, say, deliver_files)
        patience = INTERRUPTED
        try:
            for line in resumed.told():
                say(line)
            if config.resources.gpus == "auto":
                resources = pack_trials(config, plan, workspace, say)
            workers = f" for each of {resources.workers} workers" if resources.workers > 1 else ""
            each = f"of {counted(config.trials, 'trial', 'trials')}" if config.trials else "trained once as configured"
            studies = counted(len(plan.studies), "study", "studies")
            say(
                f"{config.name}: {studies} {each}, "
                f"{resources.concurrency} at a time, each with {resources.cpus:g} CPU and {resources.gpus:g} GPU"
                f"{workers} ({resources.executor}); tracked in {config.tracking_uri}"
            )
            with studies_told(workspace), connection.watched(say):
                sweep = RunningSweep(config, workspace, plan, resources, tracker, console)
                failed = sweep.run()
            patience = FINISHED
            unreported = sweep.publish(FINISHED[0])
            champions = settle(client, config.tracking_uri, sweep.entered(), say)
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted; nothing is lost: go on with `msad search --resume {workspace.root.name} "
                f"--storage {workspace.root.parent}`"
            ) from None
        finally:
            undelivered = tracker.close(*patience)
    again = f"msad search --resume {workspace.root.name} --storage {shlex.quote(str(workspace.root.parent))}"
    ended = failed, undelivered, unreported, sweep.unmeasured, again, champions
    return Outcome(config.name, config.tracking_uri, *ended)
