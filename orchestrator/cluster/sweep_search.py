"""All studies of a sweep in one Ray Tune experiment.

One Tuner serves every study: a searcher that asks the studies in turn, and a scheduler that stops what they prune. So
the studies share the cluster fairly by construction, none can starve or deadlock another, a worker that is warm takes
the next trial of any study, and one driver process is enough for hundreds of studies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from ray.tune.search import Searcher

from msad.cluster.workers.task import Task
from msad.search.study import Study
from msad.training.job_config import JobConfig

MakeTask = Callable[[str, JobConfig], Task]


class TrialListener(Protocol):
    """Who hears of the trials of a sweep, in the process that runs it."""

    def started(self, study: Study, job_id: str) -> None:
        """Hear of a trial that is handed out."""

    def evaluated(self, study: Study, job_id: str) -> None:
        """Hear of an epoch after which a trial was validated."""

    def ended(self, study: Study, job_id: str) -> None:
        """Hear of a trial that is closed in its study: complete, pruned, failed or too slow."""


class SweepSearch(Searcher):
    """Hands out the next job of the study that has been given the fewest so far.

    `make_task(job_id, job)` fills in the data and the folder; `extra` is added to every trial's configuration;
    `listener` hears of all trials. The studies live in this process alone: where Ray pickles a searcher (into snapshots
    that are never read here, because Optuna's storage is what a sweep resumes from), they stay behind.

    Tune takes an error in a searcher or scheduler for one of the trial that it concerns, and goes on. Here the first
    one is kept as `broken`, and the experiment ends: it is this process's own, its database's above all.
    """

    def __init__(
        self,
        studies: Sequence[Study],
        make_task: MakeTask,
        extra: dict[str, Any],
        listener: TrialListener,
    ) -> None:
        super().__init__(metric="objective", mode="max")
        self.studies, self._make_task, self._extra, self.listener = studies, make_task, extra, listener
        self.errors: dict[str, str] = {}  # Tune's trial ID -> what the scheduler was told of a crash
        self.unwritten: dict[str, str] = {}  # the same of those that met a full disk
        self.full_disk: str | None = None  # what the first worker said that could not write; no more jobs are given out
        self.broken: Exception | None = None
        self._given = {study.key: 0 for study in studies}
        self.study_of: dict[str, tuple[Study, str]] = {}  # Tune's trial ID -> study, job ID

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Keep an error as `broken`, and raise none."""
        try:
            yield
        except Exception as error:  # whatever it is, it is no trial's
            self.broken = self.broken or error

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if not self.full_disk and not self.broken:
            with self.keeping():
                return self._suggest(trial_id)
        return Searcher.FINISHED

    def _suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        for study in sorted(self.studies, key=lambda study: self._given[study.key]):
            while (asked := study.ask()) is not None:
                task = self._make_task(*asked)
                # What a sweep that was killed had not heard of yet, and so not judged.
                if any(study.report(task.job_id, *told) for told in _told(task)):
                    study.tell(task.job_id)
                    self.listener.ended(study, task.job_id)
                    continue
                self._given[study.key] += 1
                self.study_of[trial_id] = study, task.job_id
                self.listener.started(study, task.job_id)
                return {"task": task.to_dict(), **self._extra}
        return None if any(study.may_draw_more for study in self.studies) else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        with self.keeping():
            self._complete(trial_id, result or {}, error)

    def _complete(self, trial_id: str, result: dict[str, Any], error: bool) -> None:
        study, job_id = self.study_of.pop(trial_id)
        if self.broken:
            return  # it stays interrupted: a resumed sweep hands it out again
        if error and trial_id in self.unwritten:
            self.full_disk = self.full_disk or self.unwritten[trial_id]
            return  # as above
        if "failure" in result:
            study.tell(
                job_id,
                failure=result["failure"],
                teaches=result.get("teaches", False),
                too_slow=result.get("too_slow"),
            )
        elif error or "best_objective" not in result:
            study.tell(job_id, failure=self.errors.get(trial_id, "it ended without a result"))
        else:
            study.tell(job_id, value=result["best_objective"])
        self.listener.ended(study, job_id)

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Do nothing: Optuna's storage is written at every step."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing, as `save_to_dir`."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a sweep resumes from Optuna's storage with a new Tuner")

    def __getstate__(self) -> dict[str, Any]:
        return {}


def _told(task: Task) -> list[tuple[int, float]]:
    """Return the epochs that a job has been evaluated after, and its objective then, as its worker wrote them."""
    return [(int(line["epoch"]), line[task.job.objective]) for line in task.directory.progress()]
