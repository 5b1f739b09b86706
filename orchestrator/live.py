"""What a person sees while a sweep runs: a table that updates in a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from orchestrator.study import Study


class LiveView:
    """The state of every study: trials done, running, pruned, failed, the best value so far and the time left.

    Use as a context manager; `update` after every event. On a terminal one table is redrawn; otherwise a line is
    printed whenever a trial ends.
    """

    def __init__(self, studies: Sequence[Study], concurrency: int, console: Console | None = None) -> None:
        self._studies, self._concurrency = studies, concurrency
        self.console = console or Console(stderr=True)
        self._began: dict[str, float] = {}
        self._seconds: list[float] = []
        self._stage: dict[str, str] = {}
        self._live = Live(console=self.console, get_renderable=self._table, refresh_per_second=2, transient=True)

    def __enter__(self) -> LiveView:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self._live.stop()
            self.console.print(self._table())

    def note(self, text: str) -> None:
        """Print a line for the user above the table."""
        self.console.print(text, highlight=False)

    def started(self, job_id: str) -> None:
        self._began[job_id] = time.monotonic()

    def ended(self, job_id: str, study: Study, outcome: str) -> None:
        """Note a trial's end; `outcome` is a few words such as `0.873`, `pruned` or `failed: ...`."""
        seconds = time.monotonic() - self._began.pop(job_id, time.monotonic())
        self._seconds.append(seconds)
        if not self.console.is_terminal:
            left = f", about {_duration(self.seconds_left())} left" if self.seconds_left() else ""
            done = f"{study.counts().done}/{study.trials}"
            self.note(f"{job_id}: {outcome} after {_duration(seconds)} ({study.key} {done}{left})")

    def stage(self, study: Study, text: str) -> None:
        """Show what a study does after its trials, e.g. `training the winner`; the same again is no second line."""
        before, self._stage[study.key] = self._stage.get(study.key), text
        if text != before and not self.console.is_terminal:
            self.note(f"{study.key}: {text}")

    def seconds_left(self) -> float:
        """Return the expected seconds until the last trial ends: the mean trial's time, over all that run at once."""
        if not self._seconds:
            return 0.0
        remaining = sum(study.trials - study.counts().done for study in self._studies)
        return remaining * (sum(self._seconds) / len(self._seconds)) / self._concurrency

    def _table(self) -> Table:
        left = self.seconds_left()
        table = Table(title=f"about {_duration(left)} left" if left else None, title_justify="left")
        table.add_column("study", no_wrap=True)
        for name in ("done", "running", "pruned", "failed", "best"):
            table.add_column(name, justify="right")
        table.add_column("now")
        for study in self._studies:
            counts, best = study.counts(), study.best()
            table.add_row(
                study.key,
                f"{counts.done}/{study.trials}",
                str(counts.running),
                str(counts.pruned),
                str(counts.failed),
                f"{best.value:.4f}" if best else "-",
                self._stage.get(study.key, "searching" if counts.running else "waiting"),
            )
        return table


def _duration(seconds: float) -> str:
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
