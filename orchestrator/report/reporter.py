"""Who tells of a running sweep what happens in it: to a person at once, to MLflow by way of `study_runs`."""

from __future__ import annotations

from msad.report.job_figures import measured_words, suspects_words, unmeasured
from msad.report.live import LiveView
from msad.report.study_files import write_selection
from msad.report.study_runs import StudyRuns
from msad.search.study import Study
from msad.workspace import JobDirectory, Workspace


def warn_of_suspects(view: LiveView, study: Study, directory: JobDirectory) -> None:
    """Warn once for each category of good images that a job has found unlike the others."""
    if words := suspects_words(directory.read("result") or {}):
        category = study.base.category
        look = "is each of them good? `msad data suspects` shows what is unusual in them"
        view.note(f"warning: {category}: {words}: {look}", once=f"suspects of {category}")


class TrialReporter:
    """Tells of trials: a line or a row of the table, and a run each."""

    def __init__(self, workspace: Workspace, view: LiveView, runs: StudyRuns) -> None:
        self._workspace, self._view, self._runs = workspace, view, runs

    def started(self, study: Study, job_id: str) -> None:
        record = study.record(job_id)
        self._view.started(job_id, self._workspace.job(job_id), record.job.epochs)
        self._runs.put_trial(study, record)

    def evaluated(self, _study: Study, job_id: str) -> None:
        """Hear of an epoch after which a trial was validated."""
        self._runs.touch_trial(job_id)

    def ended(self, study: Study, job_id: str) -> None:
        record = study.record(job_id)
        outcome = {"complete": f"{record.value or 0:.4f}", "failed": f"failed: {record.failure}"}
        outcome["too_slow"] = str(record.failure)
        self._view.ended(job_id, study, outcome.get(record.state, record.state))
        warn_of_suspects(self._view, study, self._workspace.job(job_id))
        self._runs.put_trial(study, record)


class FinalReporter:
    """Tells of final trainings, one per seed of a winner, and of their studies, which end with the last of them."""

    def __init__(self, view: LiveView, runs: StudyRuns) -> None:
        self._view, self._runs = view, runs
        self._ended: set[JobDirectory] = set()

    def started(self, study: Study, index: int = 0) -> None:
        seeds = self._runs.finals(study)
        several = f" (seed {index + 1} of {len(seeds)})" if len(seeds) > 1 else ""
        doing = "training the winner, then testing it" if study.trials else "training, then testing"
        self._view.stage(study, f"{doing}{several}", seeds[index], study.winner().epochs)
        self._runs.put_study(study, "running")
        if several:
            self._runs.put_seed(study, index, ended=False)

    def ended(self, study: Study, index: int = 0) -> None:
        seeds = self._runs.finals(study)
        self._ended.add(seeds[index])
        if len(seeds) > 1:
            self._runs.put_seed(study, index, ended=True)
        if not self._ended.issuperset(seeds):
            return
        if (failure := seeds[0].read("failure")) is not None:
            self.failed(study, failure["reason"])
            return
        warn_of_suspects(self._view, study, seeds[0])
        self.measured(study)
        for remark in (seeds[0].read("test_remarks") or {}).get("remarks", ()):
            self._view.note(f"{study.key}, test images: {remark}")

    def failed(self, study: Study, reason: str) -> None:
        """Tell of a study without a winner, or whose winner could not be trained."""
        self._view.stage(study, "failed")  # why is told in the end, once
        self._runs.put_study(study, "failed", reason)

    def searched(self, study: Study) -> None:
        """Tell of a study of several products, each of which has told of its own end."""
        reason = None if study.winner() else "none of its trials is complete"
        self._runs.put_study(study, "failed" if reason else "complete", reason)

    def measured(self, study: Study) -> None:
        """Tell what the test split said of a winner, or why it said nothing."""
        reason = unmeasured(self._runs.finals(study)[0])
        words = measured_words(self._runs.tests(study)) if reason is None else f"trained, but not measured: {reason}"
        self._view.stage(study, words)
        self._runs.put_study(study, "complete", reason)


class SelectionReporter:
    """Tells of trials that are measured on the test split once their study is, for the report on the selection."""

    def __init__(self, workspace: Workspace, view: LiveView, runs: StudyRuns, finals: FinalReporter) -> None:
        self._workspace, self._view, self._runs, self._finals = workspace, view, runs, finals

    def started(self, study: Study, _job_id: str) -> None:
        self._view.stage(study, "testing its trials, for the report")

    def ended(self, study: Study, job_id: str) -> None:
        if (failure := self._workspace.job(job_id).read("test_report_failure")) is not None:
            self._view.note(f"{job_id} is left out of the report on the selection: {failure['reason']}")
        else:
            self._runs.put_trial(study, study.record(job_id))

    def concluded(self, study: Study) -> None:
        """Write a study's report, where there is one, and tell of the study again."""
        if write_selection(study, self._workspace):
            self._finals.measured(study)


class Reporter:
    """Those who tell of one sweep, by what they tell of."""

    def __init__(self, workspace: Workspace, view: LiveView, runs: StudyRuns) -> None:
        self.runs, self.trials, self.finals = runs, TrialReporter(workspace, view, runs), FinalReporter(view, runs)
        self.selection = SelectionReporter(workspace, view, runs, self.finals)
