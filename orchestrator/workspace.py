"""Where a sweep keeps what it must not lose: one folder, on a path that every node of the cluster sees.

```
STORAGE/NAME/
  sweep.yaml       the settings, with absolute paths
  plan.json        what they have come to: every study's job, ranges and images (`msad.search.sweep_plan`)
  sweep_id         what tells it from every other sweep, one of the same name at another time included
  optuna.db        every study and trial: parameters, states, values (Optuna's own storage)
  memory.json      what trials were measured to take, where `gpus` is `auto`
  lock             held while a sweep of this name runs
  jobs/JOB_ID/     job.json, progress.jsonl, checkpoint.pt while it trains, result.json or failure.json, bundle/;
                   of several products, products/0/, ... in the place of bundle/, each like a job's folder itself
  tune/ train/     what Ray itself keeps while it runs
```
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msad.errors import ConfigError, DiskFull, ResourceError, full_disk
from msad.names import final_id
from msad.sqlite_file import address_of

PRODUCTS = "products"


@dataclass(frozen=True)
class Workspace:
    """Paths of one sweep's folder."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "sweep.yaml"

    @property
    def studies(self) -> str:
        """The address of Optuna's storage; see `sqlite_file.address_of` for what a path may not have."""
        return address_of(self.root / "optuna.db")

    @property
    def sweep_id(self) -> str | None:
        """The sweep's identity, which its experiment has too; None before it has begun."""
        try:
            return (self.root / "sweep_id").read_text().strip() or None
        except FileNotFoundError:
            return None

    def claim_id(self, wanted: str | None = None) -> str:
        """Return the sweep's identity, made now where it has none: `wanted`, or one that no sweep ever had."""
        if self.sweep_id is None:
            self.root.mkdir(parents=True, exist_ok=True)
            write_atomically(self.root / "sweep_id", (wanted or uuid.uuid4().hex).encode())
        return self.sweep_id

    def job(self, job_id: str) -> JobDirectory:
        return JobDirectory(self.root / "jobs" / job_id)

    def final(self, study_id: str, index: int = 0) -> JobDirectory:
        """Return the folder of a study's final training with one of its seeds; the first one's model is delivered."""
        return self.job(final_id(study_id, index))

    def check_jobs(self) -> None:
        """Read what jobs have left once, before a sweep that is resumed builds on it.

        Raises
        ------
        ResourceError
            A file is damaged: a line for each.
        """
        damaged = []
        for file in sorted([*self.root.glob("jobs/*/*.json"), *self.root.glob(f"jobs/*/{PRODUCTS}/*/*.json")]):
            try:
                JobDirectory(file.parent).read(file.stem)
            except ResourceError:
                damaged.append(file)
        if damaged:
            raise ResourceError("\n".join(map(_damaged, damaged)))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the sweep's name; the lock goes with the process, so a killed sweep leaves none behind.

        Where nothing has begun in the end, because the start was refused, the folders made here are removed.
        """
        made = [folder for folder in (self.root, *self.root.parents) if not folder.exists()]
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{self.root}: cannot be made: {error.strerror}: choose another --storage") from error
        with (self.root / "lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"a sweep named {self.root.name!r} is running in {self.root}: wait for it, or choose another --name"
                ) from None
            for folder in (
                self.root,
                self.root / "report",
                *self.root.glob("jobs/*"),
                *self.root.glob("jobs/*/bundle"),
                *self.root.glob(f"jobs/*/{PRODUCTS}/*"),
                *self.root.glob(f"jobs/*/{PRODUCTS}/*/bundle"),
            ):
                _clear_partial(folder)  # else a bundle would be delivered with them
            try:
                yield
            finally:
                if not self.config.exists():
                    for name in ("lock", "sweep_id") if self.root in made else ("lock",):
                        (self.root / name).unlink(missing_ok=True)
                    with suppress(OSError):  # whatever else lies there stays
                        for folder in made:
                            folder.rmdir()


@dataclass(frozen=True)
class JobDirectory:
    """One job's folder. Only the job's own worker writes here, whichever executor runs it."""

    path: Path

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    @property
    def bundle(self) -> Path:
        return self.path / "bundle"

    def product(self, place: int) -> JobDirectory:
        """Return the folder of what one of several products makes of the job, by its place among them."""
        return JobDirectory(self.path / PRODUCTS / str(place))

    def write(self, name: str, values: dict[str, Any]) -> None:
        """Write `NAME.json` whole or not at all."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path / f"{name}.json", json.dumps(values, indent=2).encode())

    def read(self, name: str) -> dict[str, Any] | None:
        """Return what `NAME.json` holds, None where there is none."""
        file = self.path / f"{name}.json"
        try:
            return json.loads(file.read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:  # no JSON, or no text: what a power cut leaves on some disks
            raise ResourceError(_damaged(file)) from error

    def append_progress(self, metrics: dict[str, float]) -> None:
        """Add one evaluation. A job that went back to its checkpoint writes an epoch again: the later line counts."""
        file_name = self.path / "progress.jsonl"
        with full_disk_told(file_name), file_name.open("a") as file:
            file.write("\n" + json.dumps(metrics) + "\n")  # the first ends a line that a kill has cut off
            file.flush()
            os.fsync(file.fileno())  # before the checkpoint that goes on after it

    def clear_unfinished(self) -> None:
        """Remove what a worker that was killed has left half written."""
        for folder in (self.path, *self.path.glob(f"{PRODUCTS}/*")):
            for path in folder.glob(".bundle.*"):
                shutil.rmtree(path, ignore_errors=True)
            for place in (folder, folder / "bundle"):
                _clear_partial(place)

    def progress(self) -> list[dict[str, float]]:
        """Return the evaluations by epoch; a line cut off by a kill is left out."""
        by_epoch: dict[float, dict[str, float]] = {}
        try:
            lines = (self.path / "progress.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return []
        for line in lines:
            try:
                metrics = json.loads(line)
            except json.JSONDecodeError:
                continue
            by_epoch[metrics["epoch"]] = metrics
        return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def _clear_partial(folder: Path) -> None:
    """Remove what a process that was killed in `write_atomically` has left; nobody else may be writing there."""
    for path in folder.glob(".*.partial"):
        path.unlink(missing_ok=True)


def _damaged(file: Path) -> str:
    state = "is empty" if not file.stat().st_size else "is cut off or damaged"
    return f"{file}: {state}: remove it and start again; what it held is then made anew, or left away"


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file by new content in one step, so that a reader or a kill never meets half of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with full_disk_told(path), partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def full_disk_told(path: Path) -> Iterator[None]:
    """Turn the error of a full disk, and what comes from one, into an error that says what to do.

    `path` is what is told where the error itself names none.

    Raises
    ------
    DiskFull
        There is no space left, or the user's share of it is used up.
    """
    try:
        yield
    except Exception as error:
        full = full_disk(error)
        if full is None or (full is error and isinstance(full, DiskFull)):
            raise
        if isinstance(full, DiskFull):
            raise DiskFull(str(full)) from error
        raise DiskFull(
            f"{full.filename or path}: cannot be written: {full.strerror}; what was there before is unharmed: free "
            "some space and try again"
        ) from error
