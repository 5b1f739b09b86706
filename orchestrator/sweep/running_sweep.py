"""A sweep while it runs: its studies and trials, then its winners, on a cluster that is there."""

from __future__ import annotations

import contextlib
import dataclasses
import functools

from rich.console import Console

from msad.cluster.comparison import compare_by_ray
from msad.cluster.connection import TrialResources
from msad.cluster.finals import make_way, run_finals, run_reports
from msad.cluster.workers.object_store import below
from msad.cluster.workers.task import Task
from msad.cluster.workers.worker_storage import fetch, jobs_with_checkpoints, remove_checkpoints, train_storage
from msad.data_io.array_cache import chosen_cache_dir
from msad.errors import ResourceError, first_line
from msad.names import final_id
from msad.report.live import LiveView
from msad.report.reporting import Reporter, unmeasured
from msad.report.sweep_report import SweepReport
from msad.search.config import SweepConfig
from msad.search.study import Study
from msad.search.study_storage import open_studies
from msad.search.sweep_plan import SweepPlan
from msad.tracking.challenge import Compare
from msad.tracking.tracker import Tracker
from msad.training.job_config import JobConfig
from msad.workspace import JobDirectory, Workspace


class RunningSweep:
    """The parts of a running sweep, held together."""

    def __init__(
        self,
        config: SweepConfig,
        workspace: Workspace,
        plan: SweepPlan,
        resources: TrialResources,
        tracker: Tracker,
        console: Console,
    ) -> None:
        self.config, self.workspace, self.plan, self.resources = config, workspace, plan, resources
        self.code_version = plan.code[-1].version
        self.train_storage = train_storage(workspace, config.worker_storage)
        storage = open_studies(workspace)
        self.studies = [
            Study(study.job, study.space, study.trials, storage, config.pruner, id=study.id, name=study.name)
            for study in plan.studies
        ]
        self.view = LiveView(self.studies, resources.concurrency, console)
        self.reporter = Reporter(workspace, self.view, tracker, self._tags, config.final_seeds)
        self.tracker = tracker
        self.report = SweepReport(config, workspace, tracker, self.studies)
        self.unmeasured: dict[str, str] = {}
        self._remarks: set[str] = set()

    def run(self) -> dict[str, str]:
        """Search, train the winners, test them; return the reasons of the studies that have no tested winner."""
        with self.view:
            self._fetch_missing()
            self._clear_ended()
            for study in self.studies:
                self.reporter.catch_up(study)
            self.report.begin()
            if any(not study.finished for study in self.studies):
                self._search()
            if any(not study.finished for study in self.studies):
                raise KeyboardInterrupt  # Tune answers Ctrl-C by ending early, and swallows it
            return self._finish()

    def _search(self) -> None:
        from msad.cluster.sweep_tuner import search_all  # Tune takes seconds to import

        places = self.workspace, self.train_storage
        search_all(self.studies, self.resources, *places, self._task, self._on_trial, self.view.note)

    def _on_trial(self, event: str, study: Study, job_id: str) -> None:
        if event != "start" and (store := self._store(job_id)):
            # What cannot be had now comes with the next event, or is asked for again.
            with contextlib.suppress(OSError):
                fetch(store, self.workspace.job(job_id), progress_only=event == "result")
        if event == "end":  # a trial that is stopped early is killed, and cannot clear up behind itself
            self._clear(job_id)
        self._remark(job_id)
        self.reporter.on_trial(event, study, job_id)

    def _clear(self, job_id: str) -> None:
        """Remove the checkpoints of a job that has ended."""
        self.workspace.job(job_id).checkpoint.unlink(missing_ok=True)
        remove_checkpoints(self.train_storage, job_id)

    def _clear_ended(self) -> None:
        """Remove the checkpoints of trials that ended in the moment in which an earlier attempt was killed."""
        kept = jobs_with_checkpoints(self.train_storage)
        for study in self.studies:
            for record in study.records():
                if record.state != "running" and (
                    record.job_id in kept or self.workspace.job(record.job_id).checkpoint.exists()
                ):
                    self._clear(record.job_id)

    def _remark(self, job_id: str) -> None:
        """Tell the user once what workers remark on their nodes."""
        remark = (self.workspace.job(job_id).read("remark") or {}).get("remark")
        if remark and remark not in self._remarks:
            self._remarks.add(remark)
            self.view.note(remark)

    def _on_final(self, event: str, study: Study, index: int) -> None:
        self._remark(final_id(study.id, index))
        self.reporter.on_final(event, study, index)

    def _store(self, job_id: str) -> str | None:
        """Return the address of a job's folder in the object store, None without one."""
        store = self.config.worker_storage
        return below(store, self.config.name, "jobs", job_id) if store else None

    def _fetch_missing(self) -> None:
        """Bring the results of complete trials that the store has and the sweep's folder has not."""
        for study in self.studies if self.config.worker_storage else ():
            for record in study.records():
                directory = self.workspace.job(record.job_id)
                if record.state == "complete" and directory.read("result") is None:
                    try:
                        fetch(self._store(record.job_id), directory)
                    except OSError as error:
                        raise ResourceError(
                            f"{self.config.worker_storage} does not give the results of {record.job_id} "
                            f"({first_line(error)}): go on with `msad search --resume {self.workspace.root.name} "
                            f"--storage {self.workspace.root.parent}` when it does"
                        ) from error

    def _finish(self) -> dict[str, str]:
        self._fetch_missing()
        failed = {}
        for study in self.studies:
            if study.winner() is None:
                first = next(record.failure for record in study.records() if record.state == "failed")
                failed[study.key] = f"all {study.trials} trials failed, the first one so: {first}"
                self.reporter.study_failed(study, failed[study.key])
        chosen = [study for study in self.studies if study.key not in failed]
        failed |= self._test_winners(chosen)
        if self.config.report_trials:
            self._report_trials([study for study in chosen if study.key not in failed])
        return failed

    def _test_winners(self, studies: list[Study]) -> dict[str, str]:
        """Train each winner with every seed and test it; return the reasons of those that failed, by name."""
        by_id, tasks = {}, []
        for index in range(self.config.final_seeds):
            for study in studies:
                job, job_id = study.winner(), final_id(study.id, index)
                by_id[job_id] = study, index
                task = self._task(job_id, dataclasses.replace(job, seed=job.seed + index), "train")
                make_way(task, self.train_storage)
                if task.directory.read("test") is None:
                    tasks.append(task)
                else:
                    self.reporter.on_final("end", study, index)
        run_finals(
            tasks,
            self.resources,
            self.train_storage,
            lambda event, job_id: self._on_final(event, *by_id[job_id]),
            {final_id(study.id): trial for study in studies if (trial := self._winning_job(study))},
        )
        failed = {}
        for study, index in by_id.values():
            name = f"{study.key} with seed {study.base.seed + index}" if index else study.key
            final = self.reporter.final(study, index)
            if (failure := final.read("failure")) is not None:
                failed[name] = failure["reason"]
            elif (reason := unmeasured(final)) is not None:
                self.unmeasured[name] = reason
        return failed

    def _winning_job(self, study: Study) -> Task | None:
        """Return the trial whose model is the winner's: a Ray Train job, as the winner's own training would be.

        None where a trial ran inside a Tune trial, is of another length or seed, or has left no model.
        """
        if (best := study.best()) is None:
            return None
        job_id, job = best.user_attrs["job_id"], study.winner()
        directory = self.workspace.job(job_id)
        result, trained = directory.read("result") or {}, directory.read("job")
        alike = trained and JobConfig.from_dict(trained).digest() == job.digest()
        return self._task(job_id, job) if alike and result.get("executor") == "train" else None

    def winners(self) -> dict[str, tuple[str, JobDirectory, Compare]]:
        """Return the best of each category as they meet the champions, see `challenge.settle`."""
        if self.tracker.flush(0):
            return {}  # the resume that delivers them does it
        found = {}
        for study in self.studies:
            if study.key in self.reporter.best and (run_id := self.tracker.run_id(study.id)):
                task = self._task(final_id(study.id), study.winner())
                compare = functools.partial(compare_by_ray, task, resources=self.resources)
                found[study.base.category] = run_id, task.directory, compare
        return found

    def _report_trials(self, studies: list[Study]) -> None:
        """Measure the complete trials of studies whose winner is tested, where an earlier attempt has not."""
        by_id, tasks = {}, []
        for study in studies:
            for record in study.records():
                if record.state == "complete" and not self.workspace.job(record.job_id).read("test_report"):
                    by_id[record.job_id] = study
                    tasks.append(self._task(record.job_id, record.job))
        run_reports(tasks, self.resources, lambda event, job_id: self.reporter.on_report(event, by_id[job_id], job_id))
        for study in studies:
            self.reporter.selection(study)

    def _tags(self, job: JobConfig) -> dict[str, str]:
        return {"msad.identity": self.plan.identity(job).digest, "msad.code_version": self.code_version}

    def _task(self, job_id: str, job: JobConfig, executor: str | None = None) -> Task:
        return Task(
            job_id=job_id,
            job=job,
            dataset=self.config.dataset,
            cache=chosen_cache_dir(),
            directory=self.workspace.job(job_id),
            store=self._store(job_id),
            layout=self.plan.layout,
            cpus=self.resources.cpus,
            gpus=self.resources.gpus,
            memory=self.resources.memory,
            workers=self.resources.workers,
            timeout=self.config.trial_timeout,
            identity=self.plan.identity(job).digest,
            provenance={
                "sweep": self.config.name,
                "layout": self.plan.layout,
                "code_version": self.code_version,
                "executor": executor or self.resources.executor,
            },
        )
