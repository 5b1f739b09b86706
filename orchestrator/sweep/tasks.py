"""What the jobs of a running sweep are given: their data, their part of the cluster, and where their results belong."""

from __future__ import annotations

from msad.cluster.connection import TrialResources
from msad.cluster.workers.object_store import below
from msad.cluster.workers.task import Task
from msad.cluster.workers.worker_storage import train_storage
from msad.data_io.array_cache import chosen_cache_dir
from msad.search.config import SweepConfig
from msad.search.sweep_plan import SweepPlan
from msad.training.job_config import JobConfig
from msad.workspace import Workspace


class Tasks:
    """Makes the tasks of one sweep on the cluster that it runs on."""

    def __init__(self, config: SweepConfig, workspace: Workspace, plan: SweepPlan, resources: TrialResources) -> None:
        self.config, self.workspace, self.plan, self.resources = config, workspace, plan, resources
        self.train_storage = train_storage(workspace, config.worker_storage)
        self._code_version = plan.code[-1].version

    def make(self, job_id: str, job: JobConfig, executor: str | None = None) -> Task:
        """Return a job as a task for a worker; `executor` is the trials' unless another one is to run it.

        Such a job is the winner's, which has kept to the budget of time as a trial.
        """
        return Task(
            job_id=job_id,
            job=job,
            dataset=self.config.dataset,
            cache=chosen_cache_dir(),
            directory=self.workspace.job(job_id),
            store=self.store(job_id),
            layout=self.plan.layout,
            cpus=self.resources.cpus,
            gpus=self.resources.gpus,
            memory=self.resources.memory,
            workers=self.resources.workers,
            timeout=self.config.trial_timeout,
            latency_budget=self.config.latency_budget if executor is None else None,
            latency_device=self.config.latency_device,
            identity=self.plan.digest(job),
            provenance={
                "sweep": self.config.name,
                "layout": self.plan.layout,
                "code_version": self._code_version,
                "executor": executor or self.resources.executor,
            },
        )

    def store(self, job_id: str) -> str | None:
        """Return the address of a job's folder in the object store, None without one."""
        store = self.config.worker_storage
        return below(store, self.config.name, "jobs", job_id) if store else None

    def tags(self, job: JobConfig) -> dict[str, str]:
        """Return what a job's run in MLflow is tagged with: what it sees, and by which code."""
        return {"msad.identity": self.plan.digest(job), "msad.code_version": self._code_version}
