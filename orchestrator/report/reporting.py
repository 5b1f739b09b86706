"""What a running sweep tells: the terminal at once, MLflow by way of the tracker."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from msad.names import final_id
from msad.report.live import LiveView
from msad.search.selection import FIGURES, report_selection, seed_statistics
from msad.search.study import Study, TrialRecord
from msad.search.study_record import describe_search
from msad.tracking.run_record import RunRecord
from msad.tracking.study_note import study_note
from msad.tracking.tracker import Tracker
from msad.training.job_config import JobConfig
from msad.workspace import JobDirectory, Workspace

REPORT_TAG = {"msad.test_metrics": "reporting only, after selection"}


class Reporter:
    """Turns the events of studies and finals into lines, table rows and MLflow runs.

    `tags(job)` of a run are the identity of what its job sees and the code's version; `final_seeds` is how often each
    winner is trained.
    """

    def __init__(
        self,
        workspace: Workspace,
        view: LiveView,
        tracker: Tracker,
        tags: Callable[[JobConfig], Mapping[str, str]],
        final_seeds: int = 1,
    ) -> None:
        self._workspace, self._view, self._tracker, self._tags = workspace, view, tracker, tags
        self._final_seeds = final_seeds
        self._ended: set[JobDirectory] = set()  # finals that have been heard of
        self._outcomes: dict[str, tuple[Study, str, str | None]] = {}
        self._best: set[str] = set()  # keys of the studies that have a star

    def catch_up(self, study: Study) -> None:
        """Queue a study and all its trials: what an earlier attempt of the sweep may not have delivered."""
        self.study(study, "running")
        for record in study.records():
            self._trial(study, record)

    def on_trial(self, event: str, study: Study, job_id: str) -> None:
        """Hear of a trial: `start`, `result` or `end`."""
        if event == "result":  # nothing but its progress is new, which is in its folder
            self._tracker.touch(job_id)
            return
        record = study.record(job_id)
        if event == "start":
            self._view.started(job_id, self._workspace.job(job_id), record.job.epochs)
        elif event == "end":
            outcome = {"complete": f"{record.value or 0:.4f}", "failed": f"failed: {record.failure}"}
            self._view.ended(job_id, study, outcome.get(record.state, record.state))
        self._trial(study, record)

    def on_final(self, event: str, study: Study, index: int = 0) -> None:
        """Hear of a study's final training with one of its seeds: `start` or `end`."""
        seeds = self._finals(study)
        several = f" (seed {index + 1} of {len(seeds)})" if len(seeds) > 1 else ""
        if event == "start":
            doing = f"{'training the winner, then testing it' if study.trials else 'training, then testing'}{several}"
            self._view.stage(study, doing, seeds[index], study.winner().epochs)
            self.study(study, "running")
        else:
            self._ended.add(seeds[index])
        if several:
            self._seed(study, index, event)
        if not self._ended.issuperset(seeds):
            return
        if (failure := seeds[0].read("failure")) is not None:
            self.study_failed(study, failure["reason"])
        else:
            self._view.stage(study, self._test_words(study))
            for remark in (seeds[0].read("test_remarks") or {}).get("remarks", ()):
                self._view.note(f"{study.key}, test images: {remark}")
            self.study(study, "complete", unmeasured(seeds[0]))

    def on_report(self, event: str, study: Study, job_id: str) -> None:
        """Hear of a trial that is measured on the test split after its study: `start` or `end`."""
        directory = self._workspace.job(job_id)
        if event == "start":
            self._view.stage(study, "testing its trials, for the report")
        elif (failure := directory.read("test_report_failure")) is not None:
            self._view.note(f"{job_id} is left out of the report on the selection: {failure['reason']}")
        else:
            self._trial(study, study.record(job_id))

    def selection(self, study: Study) -> None:
        """Write a finished study's `selection.json` from what its trials' tests have left, and queue it."""
        rows = [
            {
                "job_id": record.job_id,
                "validation": record.value,
                **{name: test.get(name, math.nan) for name in FIGURES},
            }
            for record in study.records()
            if record.state == "complete" and (test := self._workspace.job(record.job_id).read("test_report"))
        ]
        if not rows:
            return
        reports = {name: dataclasses.asdict(report_selection(pd.DataFrame(rows), name)) for name in FIGURES}
        self.final(study).write("selection", {**_without_nan(reports), "trials": [_without_nan(row) for row in rows]})
        self._view.stage(study, self._test_words(study))
        self.study(study, "complete", unmeasured(self.final(study)))

    def study_failed(self, study: Study, reason: str) -> None:
        self._view.stage(study, "failed")  # why is told in the end, once
        self.study(study, "failed", reason)

    def mark_best(self, keys: set[str]) -> None:
        """Give the runs of these studies their star, and take it from all others that have ended."""
        self._best = keys
        for study, status, reason in self._outcomes.values():
            self.study(study, status, reason)

    @property
    def best(self) -> set[str]:
        """The keys of the studies that have a star."""
        return self._best

    def final(self, study: Study, index: int = 0) -> JobDirectory:
        """Return the folder of a study's final training with one of its seeds."""
        return self._workspace.job(final_id(study.id, index))

    def _finals(self, study: Study) -> list[JobDirectory]:
        return [self.final(study, index) for index in range(self._final_seeds)]

    def _seed_tests(self, study: Study) -> list[dict[str, float]]:
        return [test for final in self._finals(study) if (test := final.read("test"))]

    def _test_words(self, study: Study) -> str:
        """Say in a few words what the test split said of a winner, or why it said nothing."""
        if (reason := unmeasured(self.final(study))) is not None:
            return f"trained, but not measured: {reason}"
        return _test_words(self._seed_tests(study))

    def study(self, study: Study, status: str, reason: str | None = None) -> None:
        """Queue a study's run: while it searches a heading, in the end its winner's record.

        `reason` says why it failed, or why a complete one has no test figures.
        """
        if status == "running":
            self._best.discard(study.key)
        else:
            self._outcomes[study.key] = study, status, reason
        final, best = self.final(study), study.best()
        if status != "running" and study.trials:
            self._record_search(study)
        result, test = final.read("result") or {}, final.read("test") or {}
        metrics = _validation(result) | _known("test_", test)
        if status == "complete":
            if self._final_seeds > 1:
                tests = self._seed_tests(study)
                metrics |= _known("test_", seed_statistics(tests)) | {"final_seeds": float(len(tests))}
            metrics |= _known("selection_", _selection(final))
        winner, tags = study.winner(), self._run_tags(study, study.base) | {"msad.trials": str(study.counts().done)}
        if study.trials and status == "complete":
            tags["msad.final_training"] = final_training(result)
        self._tracker.put(
            RunRecord(
                record_id=study.id,
                kind="study",
                title=study_title(study.key, study.key in self._best),
                status=status,
                directory=final,
                best=best.user_attrs["job_id"] if best else None,
                reason=reason,
                note=study_note(study, status, reason, metrics, result.get("trial")),
                params=winner.flat() if winner and status == "complete" else _names(study),
                tags=tags,
                starred=study.key in self._best,
                metrics=metrics,
                register_as=study.base.category if status == "complete" else None,
            )
        )

    def _record_search(self, study: Study) -> None:
        """Write a study's `search.json` and draw its pictures, where they are not those of its trials as they stand."""
        final = self.final(study)
        reports = {record.job_id: self._workspace.job(record.job_id).read("test_report") for record in study.records()}
        kept = final.read("search")
        found = describe_search(study, {job_id: test for job_id, test in reports.items() if test}, kept)
        if kept != found:
            # Here, because matplotlib takes seconds to import, which the start of a sweep has not.
            from msad.pictures.study_pictures import save_study_pictures

            save_study_pictures(found, final.path / "pictures")
            final.write("search", found)

    def _seed(self, study: Study, index: int, event: str) -> None:
        """Queue the run of one seed of a winner, nested in its study's.

        The first seed's model, curves and pictures are in the study's own run, so its nested one has the figures alone,
        and a folder of its own that holds nothing but the note of what was delivered.
        """
        final, job = self.final(study, index), dataclasses.replace(study.winner(), seed=study.base.seed + index)
        failure = final.read("failure") if event == "end" else None
        status = "running" if event == "start" else "failed" if failure else "complete"
        record_id = f"{final_id(study.id)}-seed{index}"
        first = "The first seed: its model, curves and pictures are in the parent run." if index == 0 else ""
        self._tracker.put(
            RunRecord(
                record_id=record_id,
                kind="final",
                title=f"seed {job.seed}",
                status=status,
                directory=self._workspace.job(record_id),
                parent=study.id,
                reason=failure["reason"] if failure else None,
                note=lambda pages: first,
                params=job.flat(),
                tags=self._run_tags(study, job),
                metrics=_validation(final.read("result") or {}) | _known("test_", final.read("test") or {}),
            )
        )

    def _trial(self, study: Study, record: TrialRecord) -> None:
        directory = self._workspace.job(record.job_id)
        report = directory.read("test_report")
        self._tracker.put(
            RunRecord(
                record_id=record.job_id,
                kind="trial",
                title=f"trial {record.job_id[-4:]}",
                status=record.state,
                directory=directory,
                parent=study.id,
                reason=record.failure,
                params=record.job.flat(),
                tags=self._run_tags(study, record.job) | (REPORT_TAG if report else {}),
                metrics=_validation(directory.read("result") or {}) | _known("report_test_", report or {}),
            )
        )

    def _run_tags(self, study: Study, job: JobConfig) -> dict[str, str]:
        names = {f"msad.{name}": value for name, value in _names(study).items()}
        return names | {"msad.study": study.key} | dict(self._tags(job))


def final_training(result: Mapping[str, Any]) -> str:
    """Say of a winner's result whether its model is the trial's own, or was trained again and why that was needed."""
    if trial := result.get("trial"):
        return f"none: the model of {trial}, which was a Ray Train job to the end"
    return "trained again: its trial ran inside a Tune trial, or its model was not kept"


def _names(study: Study) -> dict[str, str]:
    return {"category": study.base.category, "architecture": study.base.architecture}


def study_title(key: str, best: bool) -> str:
    """Return the name of a study's run; the best of its category has a star in front, where no column cuts it off."""
    return ("★ " if best else "") + " / ".join(key.rsplit("/", 1))


def _known(prefix: str, figures: Mapping[str, float | None]) -> dict[str, float]:
    """Return the figures that are numbers, under their MLflow names."""
    return {f"{prefix}{name}": value for name, value in figures.items() if value is not None and value == value}


def _without_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as JSON has them: null for NaN, also one level down."""
    return {
        key: _without_nan(value) if isinstance(value, Mapping) else None if value != value else value
        for key, value in values.items()
    }


def _selection(final: JobDirectory) -> dict[str, float | None]:
    """Return the report on a study's selection by image AUROC; empty where none was asked for."""
    report = (final.read("selection") or {}).get("image_auroc", {})
    names = {"random_mean": "random"}
    return {names.get(name, name): value for name, value in report.items()}


def unmeasured(final: JobDirectory) -> str | None:
    """Return why a trained winner has no test figures although there are test images; None where it has, or has none.

    What is measured later counts: an object store keeps the older file.
    """
    if final.read("test") is not None or (found := final.read("unmeasured")) is None:
        return None
    return found["reason"]


def _test_words(tests: list[dict[str, float]]) -> str:
    """Return the first seed's image AUROC, or the mean and spread of all; `tests` is empty without test images."""
    if not tests:
        return "no test images to measure it on"
    several = seed_statistics(tests)
    if "image_auroc_mean" not in several:
        return _image_words(tests[0])
    mean, sd = several["image_auroc_mean"], several["image_auroc_sd"]
    return f"test image AUROC {mean:.4f} ± {sd:.4f}"


def _image_words(test: Mapping[str, float]) -> str:
    """Return one model's image AUROC, or what there is where the test split has images of one class alone."""
    auroc = test["image_auroc"]
    if auroc is not None and auroc == auroc:
        return f"test image AUROC {auroc:.4f}"
    good, defective = int(test.get("good_images", 0)), int(test.get("defective_images", 0))
    if defective:
        return f"no good test images, so no AUROC; {int(test['misses'])} of {defective} defective ones missed"
    return f"no defective test images, so no AUROC; {int(test.get('false_positives', 0))} of {good} good ones flagged"


def _validation(result: Mapping[str, Any]) -> dict[str, float]:
    """Return a finished job's figures under their MLflow names: those of its best epoch, not of its last."""
    names = {
        "score": "validation_score",
        "image_auroc": "validation_image_auroc",
        "pixel_ap": "validation_pixel_ap",
        "chance": "validation_chance",
        "epoch": "best_epoch",
        "threshold": "threshold",
        "pixel_threshold": "pixel_threshold",
        "parameters": "parameters",
    }
    promised = {
        f"{kind}_{name}": float(value)
        for kind in ("false_alarms", "false_regions")
        for name, value in result.get(kind, {}).items()
    }
    return {names[key]: float(value) for key, value in result.items() if key in names} | promised
