"""A sweep while it runs: its studies and trials, then its winners, on a cluster that is there."""

from __future__ import annotations

from rich.console import Console

from msad.cluster.trial_resources import TrialResources
from msad.report.live import LiveView
from msad.report.reporter import Reporter
from msad.report.study_runs import StudyRuns
from msad.report.sweep_run import SweepRun
from msad.search.config import SweepConfig
from msad.search.study import Study
from msad.search.study_storage import open_studies
from msad.search.sweep_plan import SweepPlan
from msad.sweep.job_files import JobFiles, TrialFiles
from msad.sweep.tasks import Tasks
from msad.sweep.winners import Winners
from msad.tracking.challenge import Compare
from msad.tracking.tracker import Tracker
from msad.workspace import JobDirectory, Workspace


class RunningSweep:
    """The parts of a running sweep, held together: what happens, and in which order."""

    def __init__(
        self,
        config: SweepConfig,
        workspace: Workspace,
        plan: SweepPlan,
        resources: TrialResources,
        tracker: Tracker,
        console: Console,
    ) -> None:
        self._report_trials, self._tracker = config.report_trials, tracker
        storage = open_studies(workspace)
        self._studies = [
            Study(
                study.job,
                study.space,
                study.trials,
                storage,
                config.pruner,
                has_budget=config.latency_budget is not None,
                id=study.id,
                name=study.name,
            )
            for study in plan.studies
        ]
        self._rows = [
            study.of_product(job.category, id) if planned.parts else study
            for study, planned in zip(self._studies, plan.studies, strict=True)
            for job, id in zip(study.base.of_products(), planned.rows.values(), strict=True)
        ]
        self._tasks = Tasks(config, workspace, plan, resources)
        self._view = LiveView(self._studies, resources.concurrency, console)
        self._runs = StudyRuns(workspace, tracker, self._tasks.tags, config.final_seeds)
        self._reporter = Reporter(workspace, self._view, self._runs)
        self._files = JobFiles(self._tasks, self._studies, self._view.note)
        self._winners = Winners(self._tasks, self._files, self._reporter)
        self._report = SweepRun(config, workspace, tracker, self._rows)

    def run(self) -> dict[str, str]:
        """Search, train the winners, test them; return the reasons of the studies that have no tested winner."""
        with self._view:
            self._files.fetch_missing()
            self._files.clear_ended()
            for study in self._studies:
                self._runs.catch_up(study)
            for row in self._rows:
                if row.whole is not row:
                    self._runs.put_study(row, "running")
            self._report.begin()
            if any(not study.finished for study in self._studies):
                self._search()
            if any(not study.finished for study in self._studies):
                raise KeyboardInterrupt  # Tune answers Ctrl-C by ending early, and swallows it
            return self._finish()

    @property
    def unmeasured(self) -> dict[str, str]:
        """Why winners that are trained have no test figures."""
        return self._winners.unmeasured

    def publish(self, patience: float) -> str | None:
        """Write the report on all studies; see `SweepRun.publish`."""
        return self._report.publish(self._runs, patience)

    def entered(self) -> dict[str, tuple[str, JobDirectory, Compare]]:
        """Return the best of each category as they meet the champions, once the report has marked them."""
        return self._winners.entered(self._rows, self._tracker)

    def _search(self) -> None:
        from msad.cluster.sweep_tuner import search_all  # Tune takes seconds to import

        places = self._tasks.workspace, self._tasks.train_storage
        heard = TrialFiles(self._files, self._reporter.trials)
        search_all(self._studies, self._tasks.resources, *places, self._tasks.make, heard, self._view.note)

    def _finish(self) -> dict[str, str]:
        self._files.fetch_missing()
        failed = {}
        for study in self._rows:
            if study.winner() is None:
                first = next(record.failure for record in study.records() if record.failure)
                failed[study.key] = f"none of {len(study.records())} trials is complete, the first one: {first}"
                self._reporter.finals.failed(study, failed[study.key])
        chosen = [study for study in self._rows if study.key not in failed]
        failed |= self._winners.train_and_test(chosen)
        for study in self._studies:
            if study.base.is_whole:
                self._reporter.finals.searched(study)
        if self._report_trials:
            measured = [study for study in chosen if study.key not in failed and study.whole is study]
            self._winners.report_trials(measured)
        return failed
