"""The winners of a sweep's studies: trained to the end, tested, reported on, and entered for the championship."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

from msad.cluster.comparison import compare_by_ray
from msad.cluster.earlier_winner import set_earlier_winner_aside
from msad.cluster.finals import Queued, run_finals, run_reports
from msad.cluster.workers.task import Task
from msad.names import final_id
from msad.report.job_figures import unmeasured
from msad.report.reporter import Reporter
from msad.search.study import Study
from msad.sweep.job_files import JobFiles
from msad.sweep.tasks import Tasks
from msad.tracking.challenge import Compare
from msad.tracking.tracker import Tracker
from msad.training.job_config import JobConfig
from msad.workspace import JobDirectory


class Winners:
    """Sees to the winners of finished studies."""

    def __init__(self, tasks: Tasks, files: JobFiles, reporter: Reporter) -> None:
        self._tasks, self._files, self._reporter = tasks, files, reporter
        self.unmeasured: dict[str, str] = {}
        """Why a winner that is trained has no test figures, by the study's key."""

    def train_and_test(self, studies: Sequence[Study]) -> dict[str, str]:
        """Train each winner with every seed and test it; return the reasons of those that failed, by name."""
        seeds = [(study, index) for index in range(self._tasks.config.final_seeds) for study in studies]
        queue = []
        for study, index in seeds:
            task = self._task(study, index)
            set_earlier_winner_aside(task, self._tasks.train_storage)
            if task.directory.read("test") is None:
                hear = (partial(event, study, index) for event in (self._started, self._ended))
                source = self._winning_trial(study.whole) if index == 0 else None
                together = None
                if study.whole is not study:
                    if source is None:
                        source = together = self._task(study.whole, index)
                        set_earlier_winner_aside(together, self._tasks.train_storage)
                    source = source.of_product(study.base.category)
                queue.append(Queued(task, *hear, source, together))
            else:
                self._reporter.finals.ended(study, index)
        run_finals(queue, self._tasks.resources, self._tasks.train_storage)
        failed = {}
        for study, index in seeds:
            name = f"{study.key} with seed {study.base.seed + index}" if index else study.key
            final = self._tasks.workspace.final(study.id, index)
            if (failure := final.read("failure")) is not None:
                failed[name] = failure["reason"]
            elif (reason := unmeasured(final)) is not None:
                self.unmeasured[name] = reason
        return failed

    def report_trials(self, studies: Sequence[Study]) -> None:
        """Measure the complete trials of studies whose winner is tested, where an earlier attempt has not."""
        selection, queue = self._reporter.selection, []
        for study in studies:
            for record in study.records():
                task = self._tasks.make(record.job_id, record.job)
                if record.state == "complete" and not task.directory.read("test_report"):
                    hear = (partial(event, study, record.job_id) for event in (selection.started, selection.ended))
                    queue.append(Queued(task, *hear))
        run_reports(queue, self._tasks.resources)
        for study in studies:
            selection.concluded(study)

    def entered(self, studies: Sequence[Study], tracker: Tracker) -> dict[str, tuple[str, JobDirectory, Compare]]:
        """Return the best of each category as they meet the champions, see `challenge.settle`."""
        if tracker.flush(0):
            return {}  # the resume that delivers them does it
        found = {}
        for study in studies:
            if study.key in self._reporter.runs.best and (run_id := tracker.run_id(study.id)):
                task = self._tasks.make(final_id(study.id), study.winner())
                compare = partial(compare_by_ray, task, resources=self._tasks.resources)
                found[study.base.category] = run_id, task.directory, compare
        return found

    def _task(self, study: Study, index: int) -> Task:
        job = study.winner()
        return self._tasks.make(final_id(study.id, index), dataclasses.replace(job, seed=job.seed + index), "train")

    def _winning_trial(self, study: Study) -> Task | None:
        """Return the trial whose model is the winner's: a Ray Train job, as the winner's own training would be.

        None where a trial ran inside a Tune trial, is of another length or seed, or has left no model.
        """
        if (best := study.best()) is None:
            return None
        job_id, job = best.user_attrs["job_id"], study.winner()
        directory = self._tasks.workspace.job(job_id)
        result, trained = directory.read("result") or {}, directory.read("job")
        alike = trained and JobConfig.from_dict(trained).digest() == job.digest()
        return self._tasks.make(job_id, job) if alike and result.get("executor") == "train" else None

    def _started(self, study: Study, index: int) -> None:
        self._files.tell_remark(final_id(study.id, index))
        self._reporter.finals.started(study, index)

    def _ended(self, study: Study, index: int) -> None:
        self._files.tell_remark(final_id(study.id, index))
        self._reporter.finals.ended(study, index)
