"""The runs of one experiment, kept as a sweep's records are: what is missing or differs is sent, all else stays.

What MLflow has is asked once and then remembered, so a sweep of a thousand finished trials resumes with one question.
A run holds the digest of what it was given (`CONTENT_TAG`), so whatever has changed since, a value under an old name
included, is seen and sent again. Metrics in MLflow are only ever added to: of several values at one step the latest
counts, in its table, its search and its clients, and of a metric's steps the last. So a value replaces an older one by
coming later at a step that is not before.

A run that another training left under the same record, on other images or with other parameters, is never relabelled:
it steps aside (kind `replaced`), and the record gets a run of its own.
"""

from __future__ import annotations

import getpass
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from msad.tracking.run_record import ORIGIN, RunRecord
from msad.tracking.store import all_pages
from msad.tracking.ui.pages import Pages

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

RUN_STATUS = {"complete": "FINISHED", "pruned": "KILLED", "too_slow": "KILLED", "failed": "FAILED"}
NOTE_TAG = "mlflow.note.content"  # what the UI shows as the description of a run or an experiment
CONTENT_TAG = "msad.content_sha256"  # of the record that a run was given whole
REPLACED = "replaced"  # the kind of a run that another one stands for now
SUMMARY = (
    *("test_", "report_test_", "selection_", "final_seeds", "threshold", "pixel_threshold", "false_regions_"),
    *("parameters", "best_epoch"),
)
"""What figures of a finished run begin with that no epoch has: one that the record has no more becomes NaN."""


@dataclass
class _Known:
    """A run as MLflow has it; `fresh` where nothing has been logged to it before."""

    run_id: str
    tags: dict[str, str]
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    running: bool = True
    deleted: bool = False
    fresh: bool = False


class RunMirror:
    """Brings records into the runs of an experiment; used by one thread.

    Parameters
    ----------
    client, experiment_id
        Where to.
    deliver_files
        Uploads what a finished record's folder holds: `deliver_files(client, run_id, record)`.
    say
        Called with a line for the user where a run was not as a sweep had left it.
    """

    def __init__(
        self,
        client: MlflowClient,
        experiment_id: str,
        deliver_files: Callable[[MlflowClient, str, RunRecord], None],
        say: Callable[[str], None],
    ) -> None:
        self._client, self._experiment_id = client, experiment_id
        self._deliver_files, self._say = deliver_files, say
        self.run_ids: dict[str, str] = {}  # of the records that have been delivered
        self._pages = Pages(experiment_id, self.run_ids.get)
        self._known: dict[str, _Known] | None = None
        self._epochs: dict[str, dict[int, set[float | None]]] = {}  # what MLflow has of a record's epochs

    def forget(self) -> None:
        """Ask anew what MLflow has: a delivery ended in its middle, and only the server knows what came through."""
        self._known = None
        self._epochs.clear()

    def deliver(self, record: RunRecord, latest: Mapping[str, RunRecord]) -> None:
        """Bring a record into its run; `latest` are the newest records by ID, for one whose parent has no run yet."""
        known = self._runs().get(record.record_id)
        if known and record.ended and known.tags.get(CONTENT_TAG) == record.content():
            self.run_ids[record.record_id] = known.run_id
            if not known.deleted:  # else a person has removed it, and it has no news
                self._retag(known, self._tags(record, known, latest))
            return
        known = self._run_for(record, latest)
        self._retag(known, {CONTENT_TAG: ""})  # until all of it is there
        self._log_figures(known, record, self._tags(record, known, latest))
        if record.experiment_note:
            self._client.set_experiment_tag(self._experiment_id, NOTE_TAG, record.experiment_note(self._pages))
        if record.ended:
            self._deliver_files(self._client, known.run_id, record)
            self._client.set_terminated(known.run_id, RUN_STATUS[record.status])
            known.running = False
            self._retag(known, {CONTENT_TAG: record.content()})

    def _runs(self) -> dict[str, _Known]:
        from mlflow.entities import ViewType

        if self._known is None:
            runs = all_pages(self._client.search_runs, experiment_ids=[self._experiment_id], run_view_type=ViewType.ALL)
            # The newest that is there counts, should there be several.
            runs.sort(key=lambda run: (run.info.lifecycle_stage != "deleted", run.info.start_time))
            self._known = {
                run.data.tags["msad.trial_id"]: _known(run)
                for run in runs
                if run.data.tags.get("msad.kind") != REPLACED and "msad.trial_id" in run.data.tags
            }
        return self._known

    def _run_for(self, record: RunRecord, latest: Mapping[str, RunRecord]) -> _Known:
        """Return a record's run, ready to be written to; made where there is none that is of the same training."""
        known = self._runs().get(record.record_id)
        if known and known.deleted:
            self._client.restore_run(known.run_id)
            known.deleted = False
            self._say(f"{record.title}: its run was deleted in MLflow and has news: it is restored")
        if known and (reason := _other_training(known, record)):
            self._retag(known, {"msad.kind": REPLACED, "mlflow.runName": f"{record.title} ({REPLACED})"})
            self._say(f"{record.title}: run {known.run_id} {reason}: it stays as it is, and a new one is made")
            known = None
        if known is None:
            known = self._create(record, latest)
        elif not known.running and not record.ended:
            self._client.update_run(known.run_id, status="RUNNING")
            known.running = True
        self.run_ids[record.record_id] = known.run_id
        return known

    def _create(self, record: RunRecord, latest: Mapping[str, RunRecord]) -> _Known:
        tags = {
            **record.tags,
            **record.origin(),
            "msad.kind": record.kind,
            "msad.trial_id": record.record_id,
            "msad.status": record.status,
            "mlflow.user": getpass.getuser(),
            "mlflow.source.name": "msad",
        }
        if record.parent:
            tags["mlflow.parentRunId"] = self._parent(record, latest)
        run = self._client.create_run(self._experiment_id, tags=tags, run_name=record.title)
        made = self._runs()[record.record_id] = _Known(run.info.run_id, dict(run.data.tags), fresh=True)
        return made

    def _parent(self, record: RunRecord, latest: Mapping[str, RunRecord]) -> str:
        """Return the run of a record's parent, made here where its own record still waits."""
        if record.parent not in self.run_ids and record.parent in latest:
            self._run_for(latest[record.parent], latest)
        return self.run_ids.get(record.parent) or self._runs()[record.parent].run_id

    def _tags(self, record: RunRecord, known: _Known, latest: Mapping[str, RunRecord]) -> dict[str, str]:
        """Return what a reader of the run sees beside its figures: its name, description and tags."""
        tags = {name: value for name, value in record.tags.items() if name not in ORIGIN or name not in known.tags}
        tags |= {**record.origin(), "msad.status": record.status, "mlflow.runName": record.title}
        if record.parent:
            tags["mlflow.parentRunId"] = self._parent(record, latest)
        if record.best in self.run_ids:
            tags["msad.best_trial"] = self.run_ids[record.best]
        if record.starred is not None:
            tags["msad.best"] = str(record.starred).lower()
        if record.reason:
            tags["msad.reason"] = record.reason[:4000]
        elif "msad.reason" in known.tags:
            tags["msad.reason"] = ""  # of an earlier attempt
        if record.note:
            tags[NOTE_TAG] = record.note(self._pages)
        return {name: str(value) for name, value in tags.items()}

    def _retag(self, known: _Known, tags: Mapping[str, str]) -> None:
        """Set those tags that differ."""
        if changed := {name: value for name, value in tags.items() if known.tags.get(name, "") != value}:
            self._log_batches(known.run_id, [], {}, changed)
            known.tags |= changed

    def _log_figures(self, known: _Known, record: RunRecord, tags: Mapping[str, str]) -> None:
        """Send parameters, tags, the epochs that MLflow has not or has otherwise, and the summary."""
        from mlflow.entities import Metric

        # Taken out until all has come through.
        had = self._epochs.pop(record.record_id, None)
        if had is None:
            had = {} if known.fresh else self._history(known.run_id)
        unsent = [
            epoch
            for epoch in record.directory.progress()
            if epoch.get("validation_score") not in had.get(int(epoch["epoch"]), ())
        ]
        now = int(time.time() * 1000)
        figures = [{_epoch_metric(name): value for name, value in epoch.items() if name != "epoch"} for epoch in unsent]
        parts = [
            [Metric(name, value, now, int(epoch["epoch"])) for name, value in values.items()]
            for epoch, values in zip(unsent, figures, strict=True)
        ]
        summary = dict(record.metrics)
        if record.ended:
            gone = (name for name in known.metrics if name.startswith(SUMMARY) and name not in summary)
            summary |= dict.fromkeys(gone, math.nan)
        if not unsent:
            summary = {name: value for name, value in summary.items() if not _same(known.metrics.get(name), value)}
        for epoch in unsent:
            had.setdefault(int(epoch["epoch"]), set()).add(epoch.get("validation_score"))
        # At the last step and a later time, so that the summary (the best epoch's) is what the table of runs shows.
        last = max(had, default=0)
        parts.append([Metric(name, value, now + 1, last) for name, value in summary.items()])
        params = {name: value for name, value in record.shown_params().items() if name not in known.params}
        tags = {name: value for name, value in tags.items() if known.tags.get(name, "") != value}
        for metrics in _calls(parts):
            self._log_batches(known.run_id, metrics, params, tags)
            params, tags = _noted(known.params, params), _noted(known.tags, tags)
        for values in (*figures, summary):
            known.metrics |= values
        known.fresh = False
        self._epochs[record.record_id] = had

    def _history(self, run_id: str) -> dict[int, set[float | None]]:
        """Return the validation scores that MLflow has of each step: an epoch's own, and in the end the summary's."""
        history: dict[int, set[float | None]] = {}
        for metric in self._client.get_metric_history(run_id, "validation_score"):
            history.setdefault(metric.step, set()).add(metric.value)
        return history

    def _log_batches(
        self, run_id: str, metrics: Sequence[Metric], params: Mapping[str, Any], tags: Mapping[str, str]
    ) -> None:
        from mlflow.entities import Param, RunTag

        self._client.log_batch(
            run_id,
            metrics=list(metrics),
            params=[Param(name, value) for name, value in params.items()],
            tags=[RunTag(name, value) for name, value in tags.items()],
        )


def _known(run: Run) -> _Known:
    return _Known(
        run.info.run_id,
        dict(run.data.tags),
        dict(run.data.params),
        dict(run.data.metrics),
        running=run.info.status == "RUNNING",
        deleted=run.info.lifecycle_stage == "deleted",
    )


def set_aside(client: MlflowClient, experiment_id: str, study_key: str, study_id: str) -> None:
    """Mark the runs of a study from before it was started anew as replaced: they stay, and no table counts them.

    Its own now are those of the study's ID and of the jobs that it begins.
    """
    for run in all_pages(client.search_runs, experiment_ids=[experiment_id]):  # no filter can name every category
        tags = run.data.tags
        own = f"{tags.get('msad.trial_id')}-".startswith(f"{study_id}-")
        if tags.get("msad.study") == study_key and tags.get("msad.kind") != REPLACED and not own:
            client.set_tag(run.info.run_id, "msad.kind", REPLACED)
            client.set_tag(run.info.run_id, "mlflow.runName", f"{run.info.run_name} ({REPLACED})")


def _other_training(known: _Known, record: RunRecord) -> str | None:
    """Return in words why a run is of another training than a record, None where it is not."""
    before, now = known.tags.get("msad.identity"), record.origin().get("msad.identity")
    if before and now and before != now:
        return "is of other images"
    params = record.shown_params()
    changed = sorted(name for name, value in known.params.items() if params.get(name, value) != value)
    return f"has another {changed[0]}" if changed else None  # MLflow's parameters cannot be changed


def _calls(parts: Iterable[list[Metric]], most: int = 900) -> list[list[Metric]]:
    """Return metrics by call: MLflow takes at most 1000 at once, and an epoch comes whole or not at all."""
    calls: list[list[Metric]] = [[]]
    for part in parts:
        if calls[-1] and len(calls[-1]) + len(part) > most:
            calls.append([])
        calls[-1] += part
    return calls


def _noted(known: dict[str, str], sent: dict[str, str]) -> dict[str, str]:
    known |= sent
    return {}


def _epoch_metric(name: str) -> str:
    """Return an epoch's figure under its MLflow name: those of training form a group of charts, `train`."""
    return name if name.startswith("validation_") else f"train/{name.removeprefix('train_')}"


def _same(one: float | None, other: float) -> bool:
    return one == other or (one is not None and math.isnan(one) and math.isnan(other))
