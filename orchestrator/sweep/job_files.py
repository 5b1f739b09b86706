"""The folders of a running sweep's jobs: brought from an object store, read for remarks, cleared of checkpoints."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from msad.cluster.workers.worker_storage import fetch, jobs_with_checkpoints, remove_checkpoints
from msad.errors import ResourceError, first_line
from msad.report.reporter import TrialReporter
from msad.search.study import Study
from msad.sweep.tasks import Tasks


class JobFiles:
    """Sees to the job folders of a sweep; `say` is told once what workers remark on their nodes."""

    def __init__(self, tasks: Tasks, studies: Sequence[Study], say: Callable[[str], object]) -> None:
        self._tasks, self._studies, self._say = tasks, studies, say
        self._workspace, self._remarks = tasks.workspace, set()

    def fetch(self, job_id: str, *, progress_only: bool = False) -> None:
        """Bring what a worker has uploaded; what cannot be had now comes with the next event, or is asked for again."""
        if store := self._tasks.store(job_id):
            with contextlib.suppress(OSError):
                fetch(store, self._workspace.job(job_id), progress_only=progress_only)

    def fetch_missing(self) -> None:
        """Bring the results of complete trials that the store has and the sweep's folder has not.

        Raises
        ------
        ResourceError
            The store does not give them.
        """
        config = self._tasks.config
        for study in self._studies if config.worker_storage else ():
            for record in study.records():
                directory = self._workspace.job(record.job_id)
                if record.state == "complete" and directory.read("result") is None:
                    try:
                        fetch(self._tasks.store(record.job_id), directory)
                    except OSError as error:
                        raise ResourceError(
                            f"{config.worker_storage} does not give the results of {record.job_id} "
                            f"({first_line(error)}): go on with `msad search --resume {self._workspace.root.name} "
                            f"--storage {self._workspace.root.parent}` when it does"
                        ) from error

    def clear(self, job_id: str) -> None:
        """Remove the checkpoints of a job that has ended."""
        self._workspace.job(job_id).checkpoint.unlink(missing_ok=True)
        remove_checkpoints(self._tasks.train_storage, job_id)

    def clear_ended(self) -> None:
        """Remove the checkpoints of trials that ended in the moment in which an earlier attempt was killed."""
        kept = jobs_with_checkpoints(self._tasks.train_storage)
        for study in self._studies:
            for record in study.records():
                if record.state != "running" and (
                    record.job_id in kept or self._workspace.job(record.job_id).checkpoint.exists()
                ):
                    self.clear(record.job_id)

    def tell_remark(self, job_id: str) -> None:
        """Tell the user once what workers remark on their nodes."""
        remark = (self._workspace.job(job_id).read("remark") or {}).get("remark")
        if remark and remark not in self._remarks:
            self._remarks.add(remark)
            self._say(remark)


class TrialFiles:
    """Hears of trials before a reporter does, whom it passes them on to with their folders as they should be."""

    def __init__(self, files: JobFiles, reporter: TrialReporter) -> None:
        self._files, self._reporter = files, reporter

    def started(self, study: Study, job_id: str) -> None:
        self._files.tell_remark(job_id)
        self._reporter.started(study, job_id)

    def evaluated(self, study: Study, job_id: str) -> None:
        self._files.fetch(job_id, progress_only=True)
        self._files.tell_remark(job_id)
        self._reporter.evaluated(study, job_id)

    def ended(self, study: Study, job_id: str) -> None:
        self._files.fetch(job_id)
        self._files.clear(job_id)  # a trial that is stopped early is killed, and cannot clear up behind itself
        self._files.tell_remark(job_id)
        self._reporter.ended(study, job_id)
