"""A sweep's studies, trials and winners' seeds as MLflow is to show them, queued whenever one of them has changed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping

from msad.names import final_id
from msad.report.job_figures import final_training, known_figures, selection_figures, suspects_words, validation_figures
from msad.report.study_files import write_search
from msad.search.selection import seed_statistics
from msad.search.study import Study, TrialRecord
from msad.tracking.run_record import JOINT_TAG, SEARCH_TAG, RunRecord
from msad.tracking.study_note import products_note, study_note
from msad.tracking.tracker import Tracker
from msad.training.job_config import JobConfig
from msad.workspace import JobDirectory, Workspace

REPORT_TAG = {"msad.test_metrics": "reporting only, after selection"}


class StudyRuns:
    """Queues the runs of studies, from what lies in the sweep's folder.

    `tags(job)` of a run are the identity of what its job sees and the code's version; `final_seeds` is how often each
    winner is trained.
    """

    def __init__(
        self,
        workspace: Workspace,
        tracker: Tracker,
        tags: Callable[[JobConfig], Mapping[str, str]],
        final_seeds: int = 1,
    ) -> None:
        self._workspace, self._tracker, self._tags, self._final_seeds = workspace, tracker, tags, final_seeds
        self._ended: dict[str, tuple[Study, str, str | None]] = {}  # with status and reason, by key
        self.best: set[str] = set()  # keys of the studies that have a star

    def finals(self, study: Study) -> list[JobDirectory]:
        """Return the folders of a study's final trainings, the delivered model's first."""
        return [self._workspace.final(study.id, index) for index in range(self._final_seeds)]

    def tests(self, study: Study) -> list[dict[str, float]]:
        """Return the test figures of those seeds that have some; empty ones are of a dataset without test images."""
        return [test for final in self.finals(study) if (test := final.read("test"))]

    def catch_up(self, study: Study) -> None:
        """Queue a study and all its trials: what an earlier attempt of the sweep may not have delivered."""
        self.put_study(study, "running")
        for record in study.records():
            self.put_trial(study, record)

    def mark_best(self, keys: set[str]) -> None:
        """Give the runs of these studies their star, and take it from all others that have ended."""
        self.best = keys
        for study, status, reason in self._ended.values():
            self.put_study(study, status, reason)

    def put_study(self, study: Study, status: str, reason: str | None = None) -> None:
        """Queue a study's run: while it searches a heading, in the end its winner's record.

        `reason` says why it failed, or why a complete one has no test figures.
        """
        if status == "running":
            self.best.discard(study.key)
        else:
            self._ended[study.key] = study, status, reason
            if study.trials:
                write_search(study, self._workspace)
        final, best = self._workspace.final(study.id), study.best()
        result = final.read("result") or {}
        if study.base.is_whole and not result and best:  # each product has taken its part of the trial's
            result = self._workspace.job(best.user_attrs["job_id"]).read("result") or {}
        metrics = validation_figures(result) | known_figures("test_", final.read("test") or {})
        if status == "complete":
            metrics |= self._seed_figures(study) | selection_figures(final)
        winner, tags = study.winner(), self._run_tags(study, study.base) | {"msad.trials": str(study.counts().done)}
        if study.trials and status == "complete":
            tags["msad.final_training"] = final_training(result)
        if words := suspects_words(result):
            tags["msad.suspects"] = words
        self._tracker.put(
            RunRecord(
                record_id=study.id,
                kind="joint" if study.base.is_whole else "study",
                title=study_title(study.key, study.key in self.best),
                status=status,
                directory=final,
                best=best.user_attrs["job_id"] if best else None,
                reason=reason,
                note=study_note(study, status, reason, metrics, result.get("trial")),
                params=winner.flat() | _names(study) if winner and status == "complete" else _names(study),
                tags=tags,
                starred=study.key in self.best,
                metrics=metrics,
                register_as=study.base.category if status == "complete" and not study.base.is_whole else None,
            )
        )

    def put_trial(self, study: Study, record: TrialRecord) -> None:
        """Queue a trial's run, nested in its study's."""
        directory = self._workspace.job(record.job_id)
        test, result = directory.read("test_report"), directory.read("result") or {}
        self._tracker.put(
            RunRecord(
                record_id=record.job_id,
                kind="trial",
                title=f"trial {record.job_id[-4:]}",
                status=record.state,
                directory=directory,
                parent=study.id,
                reason=record.failure,
                note=products_note(result["products"]) if "products" in result else None,
                params=record.job.flat() | _names(study),
                tags=self._run_tags(study, record.job) | (REPORT_TAG if test else {}),
                metrics=validation_figures(result) | known_figures("report_test_", test or {}),
            )
        )

    def touch_trial(self, job_id: str) -> None:
        """Queue a trial's run again: nothing but its progress is new, which is in its folder."""
        self._tracker.touch(job_id)

    def put_seed(self, study: Study, index: int, *, ended: bool) -> None:
        """Queue the run of one of several seeds of a winner, nested in its study's.

        The first seed's model, curves and pictures are in the study's own run, so its nested one has the figures alone,
        and a folder of its own that holds nothing but the note of what was delivered.
        """
        final = self._workspace.final(study.id, index)
        job = dataclasses.replace(study.winner(), seed=study.base.seed + index)
        failure = final.read("failure") if ended else None
        record_id = f"{final_id(study.id)}-seed{index}"
        first = "The first seed: its model, curves and pictures are in the parent run." if index == 0 else ""
        figures = known_figures("test_", final.read("test") or {})
        self._tracker.put(
            RunRecord(
                record_id=record_id,
                kind="final",
                title=f"seed {job.seed}",
                status="failed" if failure else "complete" if ended else "running",
                directory=self._workspace.job(record_id),
                parent=study.id,
                reason=failure["reason"] if failure else None,
                note=lambda pages: first,
                params=job.flat() | _names(study),
                tags=self._run_tags(study, job),
                metrics=validation_figures(final.read("result") or {}) | figures,
            )
        )

    def _seed_figures(self, study: Study) -> dict[str, float]:
        """Return mean and spread over several final seeds; empty where there is one."""
        if self._final_seeds == 1:
            return {}
        tests = self.tests(study)
        return known_figures("test_", seed_statistics(tests)) | {"final_seeds": float(len(tests))}

    def _run_tags(self, study: Study, job: JobConfig) -> dict[str, str]:
        names = {f"msad.{name}": value for name, value in _names(study).items()} | {"msad.study": study.key}
        if job.joint:
            names |= {JOINT_TAG: json.dumps(job.joint), SEARCH_TAG: study.whole.key}
        return names | dict(self._tags(job))


def study_title(key: str, best: bool) -> str:
    """Return the name of a study's run; the best of its category has a star in front, where no column cuts it off."""
    return ("★ " if best else "") + " / ".join(key.rsplit("/", 1))


def _names(study: Study) -> dict[str, str]:
    return {"category": study.base.category, "architecture": study.base.label}
