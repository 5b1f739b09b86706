"""A sweep in MLflow: one experiment, a run for the sweep, one per study, a nested one per trial.

The sweep's folder is what counts; MLflow mirrors it. One thread of the process that runs the sweep writes everything,
so workers need no access to the server and a database meets one writer, however many trials run. Delivery is
idempotent: a run is found again by its tag, metrics already logged are not sent twice, and what could not be
delivered stays queued, here and (as files in the jobs' folders) for the next `--resume`.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator.addresses import hide_secrets
from orchestrator.errors import first_line
from orchestrator.names import search_filter
from orchestrator.ui.pages import Pages
from orchestrator.workspace import JobDirectory

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

RUN_STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
RETRY_SECONDS = 5.0
NOTE_TAG = "mlflow.note.content"  # what the UI shows as the description of a run or an experiment
Note = Callable[[Pages], str]


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What MLflow is to show of a trial, a study or the sweep; a later record of the same ID replaces an earlier one.

    `status` is `running`, `complete`, `pruned` or `failed` (with its `reason`). `directory` is the job's folder: its
    progress becomes the metrics per epoch, its bundle and pictures the artifacts. `parent` and `best` are record IDs:
    the study a trial belongs to, the trial a study chose. `starred` says whether a study is the best of its category
    (tag `msad.best`). `register_as` is the category to register the model for.
    `note` is Markdown, made when it is delivered, with links to other runs; `experiment_note` the experiment's own.
    """

    record_id: str
    kind: str
    title: str
    status: str
    directory: JobDirectory
    parent: str | None = None
    best: str | None = None
    starred: bool | None = None
    reason: str | None = None
    note: Note | None = None
    experiment_note: Note | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    register_as: str | None = None


class Tracker:
    """Delivers records to MLflow from a thread of its own; training never waits for it and never fails with it.

    Parameters
    ----------
    client, experiment_id
        Where to deliver.
    warn
        Called with a line for the user when delivery stops and when it works again.
    deliver_files
        Uploads what a finished record's folder holds: `deliver_files(client, run_id, record)`.
    """

    def __init__(
        self,
        client: MlflowClient,
        experiment_id: str,
        warn: Callable[[str], None],
        deliver_files: Callable[[MlflowClient, str, RunRecord], None],
    ) -> None:
        self._client, self._experiment_id = client, experiment_id
        self._warn, self._deliver_files = warn, deliver_files
        self._pending: dict[str, RunRecord] = {}
        self._latest: dict[str, RunRecord] = {}
        self._run_ids: dict[str, str] = {}
        self._pages = Pages(experiment_id, self._run_ids.get)
        self._logged: dict[str, int] = {}  # the last epoch of a record that MLflow is known to have
        self._failing: str | None = None
        self._changed = threading.Condition()
        self._current: str | None = None  # the record that is being delivered: neither pending nor done
        self._closing = False
        self._thread = threading.Thread(target=self._deliver_all, name="msad-tracking", daemon=True)
        self._thread.start()

    def put(self, record: RunRecord) -> None:
        """Queue a record; the newest of an ID is the one that is delivered, in the place of the first that waits."""
        with self._changed:
            self._pending[record.record_id] = self._latest[record.record_id] = record
            self._changed.notify_all()

    def touch(self, record_id: str) -> None:
        """Queue the newest record of an ID again, because its folder has new progress."""
        if (record := self._latest.get(record_id)) is not None:
            self.put(record)

    def run_id(self, record_id: str) -> str | None:
        """Return the MLflow run of a record that has been delivered."""
        return self._run_ids.get(record_id)

    def flush(self, seconds: float) -> int:
        """Wait until all is delivered, at most so long while deliveries fail; return how many records are not."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while self._pending or self._current:
                if self._failing and time.monotonic() > deadline:
                    break
                self._changed.wait(0.2)
            return len({*self._pending, self._current} - {None})

    def close(self, seconds: float = 60.0) -> int:
        """Flush, stop the thread, and return how many records could not be delivered."""
        left = self.flush(seconds)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout=5)
        return left

    def _deliver_all(self) -> None:
        while True:
            with self._changed:
                while not self._pending and not self._closing:
                    self._changed.wait()
                if self._closing:
                    return
                record = self._pending.pop(next(iter(self._pending)))
                self._current = record.record_id
            try:
                self._deliver(record)
                if self._failing:
                    self._warn("tracking works again; what was kept is being delivered")
                self._failing = None
                error = None
            except Exception as caught:  # whatever it is, training goes on and the record is kept
                error = caught
            with self._changed:
                self._current = None
                if error is not None:
                    if not self._failing:
                        self._warn(f"tracking failed and will be tried again, training goes on: {_first_line(error)}")
                    self._failing = str(error) or type(error).__name__
                    # A newer record of the same ID may have come in meanwhile; it goes to the end, so that one record
                    # that cannot be delivered does not hold up the others.
                    self._pending.setdefault(record.record_id, record)
                    self._changed.wait(RETRY_SECONDS)
                self._changed.notify_all()

    def _deliver(self, record: RunRecord) -> None:
        directory = record.directory
        known = directory.read("tracking") or {}
        # A finished run is delivered again only when it has got new figures or pictures.
        figures = [*sorted(record.metrics), *sorted(path.name for path in directory.path.glob("pictures/*.png"))]
        if (known.get("delivered"), known.get("figures")) == (record.status, figures) and record.status != "running":
            run_id = self._run_ids[record.record_id] = known["run_id"]
            tags = self._tags(record)
            if known.get("tags") != _digest(tags):  # its name or description, e.g. because another run is the best now
                self._log_batches(run_id, [], {}, tags)
                directory.write("tracking", known | {"tags": _digest(tags)})
            return
        run_id = self._run_ids.get(record.record_id) or self._find_or_create(record)
        self._run_ids[record.record_id] = run_id
        # After a delivery that failed in its middle, or another process's, only the server knows what came through.
        logged, summary = self._logged.pop(record.record_id, None), dict(record.metrics)
        if asked := logged is None:
            logged = self._last_epoch(run_id)
        progress = [metrics for metrics in directory.progress() if metrics["epoch"] > logged]
        if progress:
            logged = int(progress[-1]["epoch"])
        elif asked and summary:
            shown = self._client.get_run(run_id).data.metrics
            summary = {name: value for name, value in summary.items() if shown.get(name) != value}
        tags = self._tags(record)
        self._log(run_id, record.params, progress, summary, tags, summary_step=logged)
        if record.experiment_note:
            self._client.set_experiment_tag(self._experiment_id, NOTE_TAG, record.experiment_note(self._pages))
        delivered = None
        if record.status != "running":
            self._deliver_files(self._client, run_id, record)
            self._client.set_terminated(run_id, RUN_STATUS[record.status])
            delivered = record.status
        state = {"run_id": run_id, "delivered": delivered, "figures": figures, "tags": _digest(tags)}
        directory.write("tracking", state)
        self._logged[record.record_id] = logged

    def _find_or_create(self, record: RunRecord) -> str:
        if (run := self._find(record.record_id)) is not None:
            if run.info.status != "RUNNING" and record.status == "running":
                self._client.update_run(run.info.run_id, status="RUNNING")
            return run.info.run_id
        tags = {
            **record.tags,
            "msad.kind": record.kind,
            "msad.trial_id": record.record_id,
            "msad.status": record.status,
            "mlflow.user": getpass.getuser(),
            "mlflow.source.name": "msad",
        }
        if record.parent:
            # Made here where its own record still waits, because its delivery failed.
            parent = self._run_ids.get(record.parent) or self._find_or_create(self._latest[record.parent])
            tags["mlflow.parentRunId"] = parent
        run = self._client.create_run(self._experiment_id, tags=tags, run_name=record.title)
        return run.info.run_id

    def _find(self, record_id: str) -> Run | None:
        runs = self._client.search_runs(
            [self._experiment_id], filter_string=search_filter(tags__trial_id=record_id), max_results=1
        )
        return runs[0] if runs else None

    def _last_epoch(self, run_id: str) -> int:
        return max((metric.step for metric in self._client.get_metric_history(run_id, "validation_score")), default=0)

    def _tags(self, record: RunRecord) -> dict[str, str]:
        """Return what a reader of the run sees beside its figures: its name, description and tags."""
        tags = {**record.tags, "msad.status": record.status, "mlflow.runName": record.title}
        if record.best in self._run_ids:
            tags["msad.best_trial"] = self._run_ids[record.best]
        if record.starred is not None:
            tags["msad.best"] = str(record.starred).lower()
        if record.reason or (record.kind == "study" and record.status == "complete"):  # an earlier one is mended
            tags["msad.reason"] = (record.reason or "")[:4000]
        if record.note:
            tags[NOTE_TAG] = record.note(self._pages)
        return tags

    def _log(
        self,
        run_id: str,
        params: Mapping[str, Any],
        progress: list[dict[str, float]],
        summary: Mapping[str, float],
        tags: Mapping[str, str],
        summary_step: int,
    ) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [
            Metric(_epoch_metric(name), value, now, int(epoch["epoch"]))
            for epoch in progress
            for name, value in epoch.items()
            if name != "epoch"
        ]
        # At the last step and a later time, so that the summary (the best epoch's) is what the table of runs shows.
        metrics += [Metric(name, value, now + 1, summary_step) for name, value in summary.items()]
        self._log_batches(run_id, metrics, params, tags)

    def _log_batches(
        self, run_id: str, metrics: Sequence[Metric], params: Mapping[str, Any], tags: Mapping[str, str]
    ) -> None:
        from mlflow.entities import Param, RunTag

        # MLflow takes at most 1000 metrics and 100 parameters a call.
        for first in range(0, max(len(metrics), 1), 900):
            self._client.log_batch(
                run_id,
                metrics=list(metrics[first : first + 900]),
                params=[Param(name, str(value)[:5000]) for name, value in params.items()] if first == 0 else [],
                tags=[RunTag(name, str(value)) for name, value in tags.items()] if first == 0 else [],
            )


def _epoch_metric(name: str) -> str:
    """Return an epoch's figure under its MLflow name: those of training form a group of charts, `train`."""
    return name if name.startswith("validation_") else f"train/{name.removeprefix('train_')}"


def _digest(tags: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(tags, sort_keys=True).encode()).hexdigest()[:12]


def _first_line(error: BaseException) -> str:
    return hide_secrets(first_line(error))
