"""What a person sees while a sweep runs: a table that updates in a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from msad.progress import redraws
from msad.search.study import Study
from msad.workspace import JobDirectory


class LiveView:
    """The state of every study: trials done, running, pruned, failed, the best value so far and the time left.

    Use as a context manager. On a terminal one table is redrawn; otherwise (a file, a pipe, TERM=dumb) a line is
    printed whenever a trial ends.
    """

    def __init__(self, studies: Sequence[Study], concurrency: int, console: Console | None = None) -> None:
        self._studies, self._concurrency = studies, concurrency
        self.console = console or Console(stderr=True, markup=False, emoji=False)
        self._redraws = redraws(self.console)
        self._running: dict[str, _Running] = {}
        self._final: dict[str, _Running] = {}  # study -> its winner's training
        self._seconds: list[float] = []
        self._told: dict[str, str] = {}  # why a trial failed -> the first that did so
        self._noted: set[str] = set()
        self._stage: dict[str, str] = {}
        self._latest: dict[str, str] = {}  # study -> the one of its products that was heard of last, mostly itself
        self._live = Live(console=self.console, get_renderable=self._table, refresh_per_second=2, transient=True)

    def __enter__(self) -> LiveView:
        if self._redraws:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._redraws:
            self._live.stop()
            self.console.print(self._table())

    def note(self, text: str, once: str | None = None) -> None:
        """Print a line for the user above the table; of those that are alike by `once` the first alone."""
        if once in self._noted:
            return
        self._noted |= {once} - {None}
        self.console.print(text, highlight=False, soft_wrap=not self._redraws)  # a log is not broken at 80 columns

    def started(self, job_id: str, directory: JobDirectory | None = None, epochs: int = 0) -> None:
        """Note a trial's start; from what it leaves in its folder follows how far it is."""
        self._running[job_id] = _Running(directory, epochs)

    def ended(self, job_id: str, study: Study, outcome: str) -> None:
        """Note a trial's end; `outcome` is a few words such as `0.873`, `pruned` or `failed: ...`."""
        seconds = self._running.pop(job_id, _Running()).seconds
        self._seconds.append(seconds)
        if not self._redraws:
            left = f", about {_duration(self.seconds_left())} left" if self.seconds_left() else ""
            done = f"{study.counts().done}/{study.trials}"
            first = self._told.setdefault(outcome, job_id) if outcome.startswith("failed: ") else job_id
            outcome = outcome if first == job_id else f"failed as {first} did"
            self.note(f"{job_id}: {outcome} after {_duration(seconds)} ({study.key} {done}{left})")

    def stage(self, study: Study, text: str, directory: JobDirectory | None = None, epochs: int = 0) -> None:
        """Show what a study does after its trials, e.g. `training the winner`; the same again is no second line.

        With the folder of a job, its epochs and the time left stand beside the text while it runs.
        """
        before, self._stage[study.key] = self._stage.get(study.key), text
        self._latest[study.whole.key] = study.key
        self._final[study.key] = _Running(directory, epochs)
        if text != before and not self._redraws:
            self.note(f"{study.key}: {text}")

    def seconds_left(self) -> float:
        """Return the expected seconds until the last trial ends: the mean trial's time, over all that run at once.

        Before the first has ended, from how far the running ones are; 0 while nothing is known.
        """
        remaining = sum(study.trials - study.counts().done for study in self._studies if not study.finished)
        if self._seconds:
            return remaining * (sum(self._seconds) / len(self._seconds)) / self._concurrency
        running = list(self._running.values())  # one step: trials start and end while the table is drawn
        known = [(one.seconds, left) for one in running if (left := one.seconds_left())]
        if not known:
            return 0.0
        whole = sum(seconds + left for seconds, left in known) / len(known)
        return max(0.0, remaining * whole - sum(seconds for seconds, _ in known)) / self._concurrency

    def _table(self) -> Table:
        left = self.seconds_left()
        table = Table(title=f"about {_duration(left)} left" if left else None, title_justify="left")
        table.add_column("study", no_wrap=True)
        budget = any(study.has_budget for study in self._studies)
        for name in ("done", "running", "pruned", "failed", *(["too slow"] if budget else []), "best"):
            table.add_column(name, justify="right")
        table.add_column("now")
        for study in self._studies:
            counts, best = study.counts(), study.best()
            table.add_row(
                study.key,
                f"{counts.done}/{study.trials}" if study.trials else "-",
                str(counts.running),
                str(counts.pruned),
                str(counts.failed),
                *([str(counts.too_slow)] if budget else []),
                f"{best.value:.4f}" if best else "-",
                self._now(study) or ("searching" if counts.running else "waiting"),
            )
        return table

    def _now(self, study: Study) -> str:
        key = self._latest.get(study.key, study.key)
        text, running = self._stage.get(key, ""), self._final.get(key)
        text = f"{key.rpartition('/')[0]}: {text}" if key != study.key else text
        if running and (epoch := running.epoch()):
            left = running.seconds_left()
            text += f", epoch {epoch}/{running.epochs}" + (f", {_duration(left)} left" if left else "")
        return text


class _Running:
    """A job that runs: since when, and how many of its epochs are done, by what it has written into its folder."""

    def __init__(self, directory: JobDirectory | None = None, epochs: int = 0) -> None:
        self._directory, self.epochs = directory, epochs
        self._began = self._changed = time.monotonic()
        self._last = 0
        self._first = self.epoch()  # one that is resumed has done some before

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def epoch(self) -> int:
        """Return the last epoch that was evaluated, 0 before."""
        progress = self._directory.progress() if self._directory else []
        epoch = int(progress[-1]["epoch"]) if progress else 0
        if epoch != self._last:
            self._last, self._changed = epoch, time.monotonic()
        return epoch

    def seconds_left(self) -> float:
        """Return the expected seconds to its last epoch, falling between evaluations; 0 while nothing is known."""
        done = (epoch := self.epoch()) - self._first
        if done <= 0:
            return 0.0
        each = (self._changed - self._began) / done
        return max(0.0, each * (self.epochs - epoch) - (time.monotonic() - self._changed))


def _duration(seconds: float) -> str:
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
