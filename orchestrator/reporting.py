"""What a running sweep tells: the terminal at once, MLflow by way of the tracker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.finals import final_id
from orchestrator.live import LiveView
from orchestrator.study import Study, TrialRecord
from orchestrator.tracking import RunRecord, Tracker
from orchestrator.workspace import JobDirectory, Workspace


class Reporter:
    """Turns the events of studies and finals into lines, table rows and MLflow runs.

    `tags(category)` of a run are the data's fingerprint and the code's version.
    """

    def __init__(
        self, workspace: Workspace, view: LiveView, tracker: Tracker, tags: Mapping[str, Mapping[str, str]]
    ) -> None:
        self._workspace, self._view, self._tracker, self._tags = workspace, view, tracker, tags

    def catch_up(self, study: Study) -> None:
        """Queue a study and all its trials: what an earlier attempt of the sweep may not have delivered."""
        self.study(study, "running")
        for record in study.records():
            self._trial(study, record)

    def on_trial(self, event: str, study: Study, job_id: str) -> None:
        """Hear of a trial: `start`, `result` or `end`."""
        record = study.record(job_id)
        if event == "start":
            self._view.started(job_id)
        elif event == "end":
            outcome = {"complete": f"{record.value or 0:.4f}", "failed": f"failed: {record.failure}"}
            self._view.ended(job_id, study, outcome.get(record.state, record.state))
        self._trial(study, record)

    def on_final(self, event: str, study: Study) -> None:
        """Hear of a study's final training: `start` or `end`."""
        final = self.final(study)
        if event == "start":
            self._view.stage(study, "training the winner, then testing it")
            self.study(study, "running")
        elif (failure := final.read("failure")) is not None:
            self.study_failed(study, failure["reason"])
        else:
            self._view.stage(study, f"test image AUROC {final.read('test')['image_auroc']:.4f}")
            self.study(study, "complete")

    def study_failed(self, study: Study, reason: str) -> None:
        self._view.stage(study, f"failed: {reason}")
        self.study(study, "failed", reason)

    def final(self, study: Study) -> JobDirectory:
        """Return the folder of a study's final training."""
        return self._workspace.job(final_id(study.key))

    def study(self, study: Study, status: str, reason: str | None = None) -> None:
        """Queue a study's run: while it searches a heading, in the end its winner's record."""
        final, best = self.final(study), study.best()
        result, test = final.read("result") or {}, final.read("test") or {}
        metrics = _validation(result) | {f"test_{name}": value for name, value in test.items() if value == value}
        winner = study.winner()
        self._tracker.put(
            RunRecord(
                record_id=study.key.replace("/", "-"),
                kind="study",
                title=study.key,
                status=status,
                directory=final,
                best=best.user_attrs["job_id"] if best else None,
                reason=reason,
                note=_note(study, status, reason, metrics),
                params=winner.flat() if winner and status == "complete" else {},
                tags=self._run_tags(study) | {"msad.trials": str(study.counts().done)},
                metrics=metrics,
                register_as=study.base.category if status == "complete" else None,
            )
        )

    def _trial(self, study: Study, record: TrialRecord) -> None:
        directory = self._workspace.job(record.job_id)
        self._tracker.put(
            RunRecord(
                record_id=record.job_id,
                kind="trial",
                title=f"{study.key} {record.job_id[-4:]}",
                status=record.state,
                directory=directory,
                parent=study.key.replace("/", "-"),
                reason=record.failure,
                params=record.job.flat(),
                tags=self._run_tags(study),
                metrics=_validation(directory.read("result") or {}),
            )
        )

    def _run_tags(self, study: Study) -> dict[str, str]:
        category, architecture = study.base.category, study.base.architecture
        names = {"msad.category": category, "msad.architecture": architecture, "msad.study": study.key}
        return names | dict(self._tags[category])


def _validation(result: Mapping[str, Any]) -> dict[str, float]:
    """Return a finished job's figures under their MLflow names: those of its best epoch, not of its last."""
    names = {
        "score": "validation_score",
        "image_auroc": "validation_image_auroc",
        "pixel_ap": "validation_pixel_ap",
        "epoch": "best_epoch",
        "threshold": "threshold",
        "parameters": "parameters",
    }
    return {names[key]: float(value) for key, value in result.items() if key in names}


def _note(study: Study, status: str, reason: str | None, metrics: Mapping[str, float]) -> str:
    counts = study.counts()
    lines = [
        f"**{study.key}**: {counts.complete} trials complete, {counts.pruned} pruned, {counts.failed} failed, "
        f"of {study.trials}."
    ]
    if status == "failed":
        lines.append(f"No winner: {reason}")
    if status == "complete":
        lines.append(
            "This run is the winner, trained again to the end by a Ray Train job and only then shown the test split. "
            f"Validation score {metrics.get('validation_score', float('nan')):.4f}, "
            f"test image AUROC {metrics.get('test_image_auroc', float('nan')):.4f}."
        )
        lines.append("Fetch it: `msad pull RUN_ID --to DIR` with this run's ID.")
    return "\n\n".join(lines)
