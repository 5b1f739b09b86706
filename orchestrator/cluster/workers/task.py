"""What is sent to a worker: one job, its data and the folder its results belong in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msad.cluster.workers.object_store import below
from msad.data_io.array_cache import default_cache_dir
from msad.training.job_config import JobConfig
from msad.workspace import PRODUCTS, JobDirectory


@dataclass(frozen=True, kw_only=True)
class Task:
    """One job for a worker.

    `job_id` names it for good: a retry, a resumed sweep and its MLflow run all find it by this name. `dataset` and
    `directory` are paths that every node sees; `cache` is where a node without a `$MSAD_CACHE` of its own keeps what is
    decoded and encoded, None: where such a node keeps it by default. With a `store`, the address of the job's
    folder there, `directory` is of the sweep's own machine (see `msad.cluster.workers.worker_storage`). `layout` is the
    dataset's, see `msad.data_io.layout.find_layout`. `cpus`, `gpus` and `memory` (bytes; 0: not measured) are what
    each of its `workers` is given. `timeout` is the most minutes between two reports, 0 for any. `latency_budget` is
    what an image may take in ms, on `latency_device` or where the job runs; None: any time. `identity` is the digest of
    what the job is to see (`msad.training.identity`), None for whatever is there. `provenance` goes into the bundle.
    """

    job_id: str
    job: JobConfig
    dataset: Path
    cache: Path | None
    directory: JobDirectory
    store: str | None = None
    layout: str = "auto"
    cpus: float = 1.0
    gpus: float = 0.0
    memory: int = 0
    workers: int = 1
    timeout: float = 0.0
    latency_budget: float | None = None
    latency_device: str | None = None
    identity: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def of_product(self, category: str) -> Task:
        """Return what one of several products makes of this task: a task like others, with a folder inside of its."""
        place = self.job.joint.index(category)
        return dataclasses.replace(
            self,
            job=dataclasses.replace(self.job, category=category),
            directory=self.directory.product(place),
            store=below(self.store, PRODUCTS, str(place)) if self.store else None,
        )

    @property
    def node_cache(self) -> Path:
        """The cache of the node that this is asked on."""
        return default_cache_dir(self.cache)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, for a Ray configuration."""
        return {
            "job_id": self.job_id,
            "job": self.job.to_dict(),
            "dataset": str(self.dataset),
            "cache": str(self.cache) if self.cache else None,
            "directory": str(self.directory.path),
            "store": self.store,
            "layout": self.layout,
            "cpus": self.cpus,
            "gpus": self.gpus,
            "memory": self.memory,
            "workers": self.workers,
            "timeout": self.timeout,
            "latency_budget": self.latency_budget,
            "latency_device": self.latency_device,
            "identity": self.identity,
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Task:
        """Rebuild from `to_dict`."""
        return cls(
            **{
                **values,
                "job": JobConfig.from_dict(values["job"]),
                "dataset": Path(values["dataset"]),
                "cache": Path(values["cache"]) if values["cache"] else None,
                "directory": JobDirectory(Path(values["directory"])),
            }
        )
