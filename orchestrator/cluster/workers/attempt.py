"""One attempt at a job, whichever executor makes it: what an earlier one has left decides, and it may not hang."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from msad.cluster.workers.task import Task
from msad.cluster.workers.watchdog import NOTE, Watchdog, hung_at
from msad.training.worker_group import SINGLE_WORKER, WorkerGroup
from msad.workspace import full_disk_told

Report = Callable[[dict[str, Any], Path | None], None]


def attempt(
    run: Callable[..., None], task: Task, *, report: Report, group: WorkerGroup = SINGLE_WORKER, **words: Any
) -> None:
    """Call `run(task, report=..., group=..., **words)`, see `job_worker.run`, unless there is no need to.

    Whoever hands out jobs hears of each how it ended. A job that was done before anybody heard of it, because its
    worker or the sweep was killed then, is reported as it ended; so is one that had its last epoch behind it and has
    only been finished now. One whose last attempt hung fails with the place.

    Of several workers on one job only the first is watched: where another hangs it waits for it, in a report too, and
    they all end together. A worker alone waits in a report for those who take it, who may be away for long.

    Raises
    ------
    DiskFull
        Something could not be written, whatever it was.
    """
    directory, note = task.directory, task.directory.path / NOTE
    if directory.read("result"):
        if group.rank == 0:  # killed between its result and its end
            directory.clear_unfinished()
            note.unlink(missing_ok=True)
        report(_as_it_ended(task), None)
    elif place := hung_at(note):
        reason = f"it hung in {place}: no evaluation within {task.timeout:g} minutes (--trial-timeout), so it was ended"
        directory.write("failure", {"reason": reason, "kind": "Timeout"})
        report({"failure": reason, "objective": 0.0, "best_objective": 0.0}, None)
    else:
        if group.rank == 0:
            directory.clear_unfinished()
            (directory.path / "failure.json").unlink(missing_ok=True)
        reported = False
        with full_disk_told(directory.path), Watchdog(note, 0 if group.rank else task.timeout) as watchdog:

            def report_in_time(metrics: dict[str, Any], state: Path | None) -> None:
                nonlocal reported
                with watchdog.reporting(watched=group.world_size > 1):
                    report(metrics, state)
                reported = True

            run(task, report=report_in_time, group=group, **words)
            if not reported:
                report_in_time(_as_it_ended(task), None)


def _as_it_ended(task: Task) -> dict[str, Any]:
    """Return the last report of a job that has been evaluated for the last time."""
    last = task.directory.progress()[-1]
    return {**last, "objective": last[task.job.objective]}
