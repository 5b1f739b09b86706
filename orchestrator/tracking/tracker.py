"""A sweep in MLflow: one experiment, a run for the sweep, one per study, a nested one per trial.

The sweep's folder is what counts; MLflow mirrors it. One thread of the process that runs the sweep writes everything,
so workers need no access to the server and a database meets one writer, however many trials run. Delivery is
idempotent (`run_mirror.py`), and what could not be delivered stays queued, here and (as files in the jobs' folders) for
the next `--resume`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from msad.addresses import hide_secrets
from msad.errors import first_line
from msad.tracking.run_mirror import RunMirror
from msad.tracking.run_record import RunRecord

if TYPE_CHECKING:
    from mlflow import MlflowClient

RETRY_SECONDS = 5.0
SILENT_SECONDS = 600.0  # a bundle of hundreds of megabytes takes minutes on a slow line
THREAD = "msad-tracking"


def hung() -> bool:
    """Say whether a closed tracker's delivery still waits for an answer, as this process would for ever at its end."""
    return any(thread.name == THREAD for thread in threading.enumerate())


class Tracker:
    """Delivers records to MLflow from a thread of its own; training never waits for it and never fails with it.

    Parameters
    ----------
    client, experiment_id
        Where to deliver.
    warn
        Called with a line for the user when delivery stops, when it works again, and where a run is not as it was left.
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
        self._mirror, self._warn = RunMirror(client, experiment_id, deliver_files, warn), warn
        self._pending: dict[str, RunRecord] = {}
        self._latest: dict[str, RunRecord] = {}
        self._failing: str | None = None
        self._changed = threading.Condition()
        self._current: str | None = None  # the record that is being delivered: neither pending nor done
        self._since = 0.0  # when that began
        self._closing = False
        self._thread = threading.Thread(target=self._deliver_all, name=THREAD, daemon=True)
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
        return self._mirror.run_ids.get(record_id)

    def flush(self, seconds: float, silent: float = SILENT_SECONDS) -> int:
        """Wait until all is delivered; return how many records are not.

        At most `seconds` while deliveries fail, and `silent` seconds for one that neither ends nor fails.
        """
        deadline = time.monotonic() + seconds
        with self._changed:
            while (self._pending or self._current) and self._thread.is_alive():  # nobody delivers after `close`
                now = time.monotonic()
                if (self._failing and now > deadline) or (self._current and now > self._since + silent):
                    break
                self._changed.wait(0.2)
            return len({*self._pending, self._current} - {None})

    def close(self, seconds: float = 60.0, silent: float = SILENT_SECONDS) -> int:
        """Flush, stop the thread, and return how many records could not be delivered; see `hung`."""
        left = self.flush(seconds, silent)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout=0 if self._current else 5)
        return left

    def _deliver_all(self) -> None:
        while True:
            with self._changed:
                while not self._pending and not self._closing:
                    self._changed.wait()
                if self._closing:
                    return
                record = self._pending.pop(next(iter(self._pending)))
                self._current, self._since = record.record_id, time.monotonic()
            try:
                self._mirror.deliver(record, self._latest)
                if self._failing:
                    self._warn("tracking works again; what was kept is being delivered")
                self._failing = None
                error = None
            except Exception as caught:  # whatever it is, training goes on and the record is kept
                error = caught
                self._mirror.forget()
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


def _first_line(error: BaseException) -> str:
    return hide_secrets(first_line(error))
