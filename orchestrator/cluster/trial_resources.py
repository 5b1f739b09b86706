"""What each trial gets of a cluster, and how many run at once: arithmetic with what its nodes have."""

from __future__ import annotations

import math
from dataclasses import dataclass

from msad.errors import ResourceError
from msad.search.config import SweepConfig


@dataclass(frozen=True)
class TrialResources:
    """What each worker of a trial gets on this cluster, how many trials run at once, and by which executor.

    `memory` is in bytes, 0 where it was not measured.
    """

    executor: str
    cpus: float
    gpus: float
    concurrency: int
    memory: int = 0
    workers: int = 1


def divide(config: SweepConfig, nodes: list[dict[str, float]], memory: int = 0) -> TrialResources:
    """Divide nodes (each one's `CPU`, `GPU` and `memory`) among trials; see `connection.connect` for the errors.

    `memory` is what a trial takes of a node's, in bytes. With `gpus` of `auto` each trial gets a whole one, where there
    is any: it has not been measured yet.
    """
    wanted = config.resources
    if wanted.autoscaling:  # nodes come when trials ask for them; what is there now says nothing
        executor = "train" if config.executor == "auto" else config.executor
        return TrialResources(executor, wanted.cpus, wanted.gpus, wanted.concurrency, workers=wanted.workers)
    most_gpus = max(node.get("GPU", 0) for node in nodes)
    gpus = min(1.0, most_gpus) if wanted.gpus in (None, "auto") else wanted.gpus
    problems = [
        f"{asked:g} {kind} per trial were asked for, but the largest node has {most:g}: lower --{option}-per-trial"
        for kind, option, asked, most in (
            ("GPUs", "gpus", gpus, most_gpus),
            ("CPUs", "cpus", wanted.cpus, max(node.get("CPU", 0) for node in nodes)),
        )
        if asked > most
    ]
    if config.latency_device == "cuda" and not gpus:
        problems.append("trials cannot be timed on a GPU: no node has one; leave --latency-device away")
    most_memory = max(node.get("memory", math.inf) for node in nodes)
    if memory > most_memory:
        problems.append(
            f"a trial takes {memory / 2**30:.1f} GiB of memory, but the largest node has {most_memory / 2**30:.1f}: "
            "lower --batch-size or --image-size, or narrow the search space"
        )
    if problems:
        raise ResourceError("; ".join(problems))

    def fits(node: dict[str, float]) -> int:
        asked = {"CPU": wanted.cpus, "GPU": gpus, "memory": memory if "memory" in node else 0}
        return min(math.floor(node.get(kind, 0) / amount + 1e-9) for kind, amount in asked.items() if amount)

    workers = sum(fits(node) for node in nodes)
    if wanted.workers > max(1, workers):
        raise ResourceError(
            f"{wanted.workers} workers per trial were asked for, each with {wanted.cpus:g} CPU and {gpus:g} GPU, but "
            f"the cluster has room for {workers}: lower --workers-per-trial"
        )
    room = max(1, workers // wanted.workers)
    executor = config.executor
    if executor == "auto":
        executor = "train" if gpus or len(nodes) > 1 or wanted.workers > 1 else "direct"
    return TrialResources(executor, wanted.cpus, gpus, min(room, wanted.concurrency or room), memory, wanted.workers)
