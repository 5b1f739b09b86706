"""One attempt at a job, whichever executor makes it: what an earlier one has left decides, and it may not hang."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.workers.task import Task
from orchestrator.workers.watchdog import NOTE, Watchdog, hung_at

Report = Callable[[dict[str, Any], Path | None], None]


def attempt(run: Callable[..., None], task: Task, *, report: Report, first: bool = True, **words: Any) -> None:
    """Call `run(task, report=..., **words)`, see `job_worker.run`, unless there is no need to.

    A job that was done before anybody heard of it, because its worker or the sweep was killed then, is reported as it
    ended. One whose last attempt hung fails with the place. Of several workers on one job only the `first` is watched:
    where another hangs it waits for it, and they all end together.
    """
    directory, note = task.directory, task.directory.path / NOTE
    if directory.read("result"):
        last = directory.progress()[-1]
        report({**last, "objective": last[task.job.objective]}, None)
    elif place := hung_at(note):
        reason = f"it hung in {place}: no evaluation within {task.timeout:g} minutes (--trial-timeout), so it was ended"
        directory.write("failure", {"reason": reason, "kind": "Timeout"})
        report({"failure": reason, "objective": 0.0, "best_objective": 0.0}, None)
    else:
        with Watchdog(note, task.timeout if first else 0) as watchdog:

            def report_in_time(metrics: dict[str, Any], state: Path | None) -> None:
                with watchdog.reporting():
                    report(metrics, state)

            run(task, report=report_in_time, **words)
