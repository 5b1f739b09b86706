"""Packing: how many trials share a GPU, or a machine without one: as many as measured memory and the CPUs allow.

Before the first trial one job of each architecture really trains, with those values of its search space that take the
most memory. What it took is kept in the sweep's folder, so that a resumed sweep does not measure again. All trials of a
sweep get the share that suits its largest architecture: a warm worker takes the next trial of any study.
"""

from __future__ import annotations

import dataclasses
import math
import re
import resource
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from msad.cluster.connection import alive_nodes
from msad.cluster.trial_resources import TrialResources, divide
from msad.cluster.workers.task import Task
from msad.data_io.array_cache import chosen_cache_dir
from msad.errors import Diverged, ResourceError
from msad.search.config import SweepConfig
from msad.search.heaviest import heaviest
from msad.search.sweep_plan import StudyPlan, SweepPlan
from msad.training.job_config import JobConfig
from msad.workspace import JobDirectory, Workspace

MARGIN = 1.15
"""A trial is given so many times what the measured one took: allocators and images differ a little."""

MOST_CONTEXT_BYTES = 1 << 30
"""What CUDA itself may take for a process. More than that beside its tensors is another process's memory."""


def pack_trials(
    config: SweepConfig, plan: SweepPlan, workspace: Workspace, say: Callable[[str], None]
) -> TrialResources:
    """Measure one trial of each architecture on the Ray cluster that is joined, and divide it accordingly.

    Parameters
    ----------
    config, plan
        The sweep, with `gpus` of `auto`.
    workspace
        Where `memory.json` is kept.
    say
        Is told in a line what each architecture takes and how many of its trials fit.

    Raises
    ------
    ResourceError
        The GPUs differ in kind; a trial fails, even with a whole GPU; none fits into a node's memory.
    """
    nodes = alive_nodes()
    kind, whole = gpu_kind(nodes), divide(config, nodes)
    kept = JobDirectory(workspace.root).read("memory") or {}

    def images(study: StudyPlan) -> int:
        return sum(len(plan.identity(job).train) for job in study.job.of_products())

    needs = {}
    for name in config.architectures:
        study = max((study for study in plan.studies if study.job.architecture == name), key=images)
        job = heaviest(study.job, study.space)
        # A GPU's recorded steps take memory of their own, and are recorded in the second epoch at the latest.
        epochs = 2 if whole.gpus else 1
        job = dataclasses.replace(job, epochs=epochs, steps=0, evaluate_every=epochs)
        key = f"{name} on {kind or 'CPU'}, {job.digest()}"
        if key not in kept:
            kept[key] = _measure(job, config, plan, whole)
            JobDirectory(workspace.root).write("memory", kept)
        needs[name] = kept[key]
    for name, need in needs.items():
        taken, total = ("device", need["total"]) if kind else ("resident", max(n.get("memory", 0) for n in nodes))
        say(f"{name}: {_gib(need[taken])} of {_gib(total)}, {resources_for(need, config, nodes).concurrency} at a time")
    largest = {part: max(need[part] for need in needs.values()) for part in ("device", "resident", "total")}
    return resources_for(largest, config, nodes)


def resources_for(need: Mapping[str, int], config: SweepConfig, nodes: list[dict[str, float]]) -> TrialResources:
    """Divide nodes among trials of one size.

    Parameters
    ----------
    need
        In bytes: `device` and `resident`, what a trial takes of a GPU and of its node, and the GPU's `total`.
    config
        The sweep; its `gpus` are replaced by a share, where there are GPUs.
    nodes
        Each one's `CPU`, `GPU` and `memory`.
    """
    if gpus := [node for node in nodes if node.get("GPU")]:
        by_memory = math.floor(need["total"] / (MARGIN * need["device"]))
        by_cpus = max(math.floor(node["CPU"] / config.resources.cpus / node["GPU"] + 1e-9) for node in gpus)
        part = math.floor(1e4 / max(1, min(by_memory, by_cpus))) / 1e4  # Ray counts in ten-thousandths
        config = config.model_copy(update={"resources": config.resources.model_copy(update={"gpus": part})})
    return divide(config, nodes, math.ceil(MARGIN * need["resident"]))


def gpu_kind(nodes: list[dict[str, float]]) -> str | None:
    """Return what Ray calls the GPUs of the nodes, None where there are none; see `pack_trials` for the error."""
    prefix = "accelerator_type:"
    kinds = {
        next((name.removeprefix(prefix) for name in node if name.startswith(prefix)), "GPU")
        for node in nodes
        if node.get("GPU")
    }
    if len(kinds) > 1:
        raise ResourceError(
            f"the cluster has GPUs of several kinds ({', '.join(sorted(kinds))}), and what fits on one says nothing "
            "about another: give --gpus-per-trial as a number"
        )
    return kinds.pop() if kinds else None


def _measure(job: JobConfig, config: SweepConfig, plan: SweepPlan, whole: TrialResources) -> dict[str, int]:
    """Train a job on a worker with a whole GPU, where there are any, and return what `resources_for` has to know."""
    import ray

    task = Task(
        job_id="memory",
        job=job,
        dataset=config.dataset,
        cache=chosen_cache_dir(),  # what this trial decodes and encodes, others find there
        directory=JobDirectory(Path()),
        layout=plan.layout,
        cpus=whole.cpus,
        gpus=whole.gpus,
    )
    # A process of its own, which gives the GPU back when it ends.
    train = ray.remote(num_cpus=whole.cpus, num_gpus=whole.gpus, max_calls=1, max_retries=0)(_train)
    try:
        need = ray.get(train.remote(task.to_dict()))
    except ray.exceptions.RayError as error:
        need = {"failure": str(error).strip().splitlines()[-1]}
    if "failure" in need:
        raise ResourceError(
            f"the memory of {job.architecture} could not be measured: a trial with those values of the search space "
            f"that take the most ended so: {need['failure']}; or give --gpus-per-trial as a number"
        )
    return need


def _train(values: dict[str, Any]) -> dict[str, Any]:
    """Run a job in a folder of its own; return the bytes it took, or its failure."""
    import torch

    from msad.cluster.workers.job_worker import run

    with tempfile.TemporaryDirectory() as folder:
        task = dataclasses.replace(Task.from_dict(values), directory=JobDirectory(Path(folder)))
        run(task, report=lambda _metrics, _state: None, resume_from=lambda: None)
        failure = task.directory.read("failure")
    if failure and failure["kind"] != Diverged.__name__:  # a loss that is not finite takes as much memory as any other
        return {"failure": failure["reason"]}
    device, total = 0, 0
    if task.gpus:
        free, total = torch.cuda.mem_get_info()
        context = total - free - torch.cuda.memory_reserved()
        device = torch.cuda.max_memory_reserved() + min(context, MOST_CONTEXT_BYTES)
    return {"device": device, "resident": resident_bytes(), "total": total}


def resident_bytes() -> int:
    """Return the most memory that this process has had to itself: without files, which trials on one node share."""
    try:
        status = dict(re.findall(r"^(VmHWM|RssFile):\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE))
        return (int(status["VmHWM"]) - int(status["RssFile"])) << 10
    except (OSError, KeyError):  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"
