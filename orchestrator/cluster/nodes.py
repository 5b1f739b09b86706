"""What every node of a cluster must share with the process that runs the sweep: its folder, the images, this code.

A node that lacks one of them would be noticed at the first checkpoint, if at all: it writes into a folder of its own.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from msad.cluster.disk_space import CacheNeed, disk_space_problem
from msad.cluster.workers.object_store import below, read_file, remove_folder, write_file
from msad.cluster.workers.task import Task
from msad.code_version import code_digest
from msad.data_io.array_cache import chosen_cache_dir, default_cache_dir
from msad.errors import ConfigError, ResourceError, first_line

ANSWER_SECONDS = 120.0  # a node whose first worker starts under load needs tens of seconds


def check_nodes(root: Path, dataset: Path, store: str | None = None, kept: Sequence[CacheNeed] = ()) -> None:
    """Ask each node of the Ray cluster, the others all at once, whether it can take part in a sweep.

    Parameters
    ----------
    root
        The sweep's folder, which exists here.
    dataset
        The root of the images.
    store
        The address of the sweep's folder in an object store that the nodes use instead of a shared one.
    kept
        What each node that trains will keep in its cache, for which it needs room.

    Raises
    ------
    ResourceError
        A node does not see or cannot write the folder or the store, does not see the images, has no msad or another
        one, or too little room; each such node is named with all of its reasons. Nodes that join later are asked by
        `require_sweep`.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here, chosen = ray.get_runtime_context().get_node_id(), chosen_cache_dir()
    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    trains = {node_id for node_id, node in nodes.items() if node["Resources"].get("CPU")}
    if here in trains and (problem := disk_space_problem(kept, default_cache_dir())):
        raise ResourceError(problem)
    others = {node_id: node for node_id, node in nodes.items() if node_id != here}
    if not others:
        return
    folder, token = root / "nodes", uuid.uuid4().hex
    shutil.rmtree(folder, ignore_errors=True)  # a killed sweep leaves its own
    folder.mkdir()
    try:
        place = str(folder)
        if store:
            place = below(store, "nodes")
            write_file(place, "token", token.encode())
        else:
            (folder / "token").write_text(token)
        ask = ray.remote(num_cpus=0, max_retries=0)(node_problems)
        answers = {
            ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote(
                place, token, str(dataset), version("msad"), code_digest(), kept if node_id in trains else (), chosen
            ): node["NodeManagerAddress"]
            for node_id, node in others.items()
        }
        answered, _ = ray.wait(list(answers), num_returns=len(answers), timeout=ANSWER_SECONDS)
        problems = []
        for answer, address in answers.items():
            if answer not in answered:
                reasons = [f"no answer within {ANSWER_SECONDS:.0f} s: is it overloaded?"]
            else:
                try:
                    reasons = ray.get(answer)
                except ray.exceptions.RayError as error:
                    reason = str(error).strip().splitlines()[-1]
                    reasons = [f"msad could not be run there ({reason}): install it on every node"]
            problems += [f"  {address}: {reason}" for reason in reasons]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if store:
            remove_folder(place)
    if problems:
        listed = "\n".join(problems)
        raise ResourceError(f"not every node of the cluster can take part in this sweep:\n{listed}")


def node_problems(
    place: str,
    token: str,
    dataset: str,
    number: str,
    digest: str,
    kept: Sequence[CacheNeed] = (),
    cache: Path | None = None,
) -> list[str]:
    """Return what this node lacks; see `check_nodes`. `number` and `digest` are the version and code of the asker.

    `place` is the folder with the token, or its address in a store; `cache` as in `msad.cluster.workers.task.Task`.
    """
    problems = _store_problems(place, token) if "://" in place else _folder_problems(Path(place), token)
    if not Path(dataset).is_dir():
        problems.append(f"it does not see the images in {dataset}: name a folder that all nodes share with --dataset")
    if code_digest() != digest:
        problems.append(f"its msad ({version('msad')}) is not the one that runs the sweep ({number}): install the same")
    problem = disk_space_problem(kept, default_cache_dir(cache))
    return [*problems, problem] if problem else problems


def _folder_problems(folder: Path, token: str) -> list[str]:
    root, shared = folder.parent, "name a folder that all nodes share with --storage, or a store with --worker-storage"
    try:
        if (folder / "token").read_text() != token:
            return [f"it has another folder at {root}: {shared}"]
        (folder / uuid.uuid4().hex).touch()
    except FileNotFoundError:
        return [f"it does not see {root}: {shared}"]
    except OSError as error:
        return [f"it cannot write to {root} ({error.strerror}): {shared}"]
    return []


def _store_problems(address: str, token: str) -> list[str]:
    try:
        if read_file(address, "token") != token.encode():
            return [f"it has other files at {address}: name a store that all nodes share with --worker-storage"]
        write_file(address, uuid.uuid4().hex, b"")
    except (OSError, ConfigError) as error:
        return [f"it cannot read and write {address} ({first_line(error)}): give it the credentials"]
    return []


def require_sweep(task: Task) -> None:
    """Refuse a job on a node that does not see its sweep: one that the autoscaler has added without the shared folder.

    Raises
    ------
    ResourceError
        The sweep's configuration is not where the job's folder belongs.
    """
    root = task.directory.path.parents[1]
    if task.store is None and not (root / "sweep.yaml").exists():
        import socket

        raise ResourceError(f"the node {socket.gethostname()} does not see the sweep's folder {root}: mount it there")
