"""The Ray cluster a sweep runs on: started here, or joined."""

from __future__ import annotations

import _thread
import logging
import os
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from msad import surroundings
from msad.cluster.job import TRAIN_ENVIRONMENT
from msad.cluster.ray_private import orphaned_groups, sockets_in
from msad.cluster.trial_resources import TrialResources, divide
from msad.errors import ResourceError, first_line
from msad.models.plugins import is_python_path
from msad.search.config import SweepConfig
from msad.training.malloc import keep_freed_memory

QUIET = {
    # Ray's and Tune's own tables and hints would bury the sweep's; errors still come through.
    "RAY_DEDUP_LOGS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # results go to the jobs' folders, not into Tune's own files
    "TUNE_RESULT_BUFFER_LENGTH": "0",
}
# Whoever reaches Ray's ports runs code here. Its own servers, all but the dashboard, listen on every address of the
# machine unless the node's own is the loopback one, which Ray gives it where it thinks that clusters are not supported.
LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
WATCH_SECONDS = 1.0


def connect(config: SweepConfig) -> TrialResources:
    """Start a local cluster, or join the one at `config.address`, and divide it among trials.

    Raises
    ------
    ResourceError
        No cluster answers at the address, or one trial asks for more than any node has.
    """
    for name, value in {**QUIET, **TRAIN_ENVIRONMENT}.items():
        os.environ.setdefault(name, value)
    keep_freed_memory()
    if not config.address:
        os.environ.update(LOOPBACK_ONLY)  # Ray reads it when it is imported

    for name in ("ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # of every crash a trace; a sweep says what happened
    _join(config)
    return divide(config, alive_nodes())


def _join(config: SweepConfig) -> None:
    import ray

    try:
        ray.init(
            address=config.address or "local",
            include_dashboard=None if config.address else False,  # its processes are half of what starting Ray costs
            log_to_driver=False,
            logging_level=logging.ERROR,
            ignore_reinit_error=True,
            # None where it can be avoided: Ray keeps idle workers ready only for jobs that ask for no environment.
            runtime_env=own_code(config) or None,
            **sockets_in(None if config.address else _ray_folder()),
        )
    except (ConnectionError, TimeoutError) as error:
        raise ResourceError(
            f"no Ray cluster answers at {config.address!r} ({first_line(error)}): start one with "
            "`ray start --head`, or leave --address away to use this machine; where a cluster has a token, set the "
            "variables RAY_AUTH_MODE=token and, unless `ray get-auth-token` knows it, RAY_AUTH_TOKEN"
        ) from error
    except Exception as error:  # Ray has no type for processes of its own that do not come up in time
        raise ResourceError(
            f"Ray could not be started on this machine ({first_line(error)}): is it short of memory or busy?"
        ) from error


def _ray_folder() -> str | None:
    """Return a short folder for Ray's sockets where the temporary folder's path is too long for them, and say so."""
    try:
        folder = surroundings.ray_folder()
    except OSError as error:
        raise ResourceError(
            "the path of the temporary folder ($RAY_TMPDIR, $TMPDIR) is too long for Ray's sockets, and "
            f"{error.filename}: {error.strerror}: set RAY_TMPDIR to a folder with a short path"
        ) from error
    if folder:
        print(f"Ray's sockets and logs are in {folder}: $TMPDIR is too long a path for them", file=sys.stderr)
    return folder


@contextmanager
def watched(say: Callable[[str], object]) -> Iterator[None]:
    """See to what Ray leaves undone while a sweep runs.

    What Ray Train jobs hold whose controllers are dead is returned to the cluster. Ray keeps the placement group of a
    dead actor until the whole sweep ends, even moves it to another node where its own is lost: the next attempt would
    wait for the resources for ever.

    Where this machine's own node is lost, without which Ray runs nothing and says nothing, the sweep is interrupted.
    """
    import ray
    from ray.util.placement_group import remove_placement_group

    context, done = ray.get_runtime_context(), threading.Event()
    job_id, node_id = context.get_job_id(), context.get_node_id()

    def watch() -> None:
        while not done.wait(WATCH_SECONDS):
            try:
                lost = not any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes())
                for group in () if lost else orphaned_groups(job_id):
                    remove_placement_group(group)
            except Exception:  # Ray's tables did not answer, in whatever way; they are asked again
                continue
            if lost:
                say("Ray's node on this machine has ended, and with it the sweep: start Ray again before it is resumed")
                _thread.interrupt_main()
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def left_as_found() -> Iterator[None]:
    """Leave the cluster that is joined in here at the end, unless this process had joined one before."""
    import ray

    joined = ray.is_initialized()
    try:
        yield
    finally:
        if not joined:
            ray.shutdown()


def alive_nodes() -> list[dict[str, float]]:
    """Return the resources of each node of the cluster that is joined."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def own_code(config: SweepConfig) -> dict[str, list[str]]:
    """Return the files and packages that hold a user's own architectures, as what Ray is to bring to every node.

    Nothing at all where there are none: Ray's workers do not start with an empty list. What is installed into Python
    stays where it is: like msad itself, it must be installed on each node.
    """
    installed = [Path(sysconfig.get_path(name)) for name in ("purelib", "platlib", "stdlib")]
    found: dict[str, None] = {}
    for name in config.architectures:
        if not is_python_path(name):
            continue
        module = sys.modules[name.partition(":")[0].partition(".")[0]]
        place = Path(module.__file__ or next(iter(module.__path__)))
        place = place.parent if place.name == "__init__.py" else place
        if not any(place.is_relative_to(folder) for folder in installed):
            found[str(place)] = None
    return {"py_modules": list(found)} if found else {}
