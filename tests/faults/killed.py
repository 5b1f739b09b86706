"""A sweep in one process, without Ray, that is killed before any of its writes: every window between two of them.

Run as a program it makes the sweep once undisturbed, and then, for each of the windows that it is asked for, once with
SIGKILL there and a second process that goes on; it prints what each came to. The processes are forked from one that has
everything imported, and no hook is in the program itself: Python's audit events tell of files that are opened for
writing, renamed and removed, SQLAlchemy's of what is committed to Optuna's database. Worker and driver are one process
here: where it is killed both are, as by a power cut, and what one has written the other has not heard of.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.faults import delivered

EPOCHS, TRIALS = 2, 2


def _ignored(*_event: Any) -> None:
    """Hear of nothing."""


def search(folder: Path, demo: Path, cache: Path) -> dict[str, Any]:
    """Search, from wherever an earlier attempt has stopped; return what is known of the trials, and the winner."""
    from ray import tune
    from ray.tune.experiment import Trial
    from ray.tune.schedulers import TrialScheduler
    from ray.tune.search import Searcher

    from msad.cluster import job
    from msad.cluster.sweep_search import SweepSearch
    from msad.cluster.trial_scheduler import OptunaPruning

    study, task = _study(folder, demo, cache)
    searcher = SweepSearch([study], task, {}, SimpleNamespace(started=_ignored, evaluated=_ignored, ended=_ignored))
    pruning = OptunaPruning(searcher)
    while (config := searcher.suggest("trial")) != Searcher.FINISHED:
        trial, last = Trial("direct_trial", trial_id="trial", stub=True), {}

        def report(metrics: dict[str, Any], trial: Trial = trial, last: dict[str, Any] = last) -> None:
            last |= metrics
            assert pruning.on_trial_result(None, trial, metrics) == TrialScheduler.CONTINUE

        tune.report = report
        job.direct_trial(config)
        searcher.on_trial_complete("trial", last)
    if searcher.broken:
        raise searcher.broken
    trials = {
        record.job_id: (record.state, record.value, trial.intermediate_values, record.job.flat())
        for record, trial in zip(study.records(), study.frozen_trials(), strict=True)
    }
    return {"trials": trials, "winner": study.winner().flat(), **_left(folder)}


def final(folder: Path, demo: Path, cache: Path) -> dict[str, Any]:
    """Train the winner of a finished search and test it, from wherever an earlier attempt has stopped."""
    from ray import tune

    from msad.cluster import job
    from msad.cluster.workers.final_training import train_winner
    from msad.cluster.workers.measuring import measure_winner
    from msad.names import final_id

    def train(values: dict[str, Any], _storage: str, losses: int = 0) -> None:
        tune.report = lambda _metrics: None
        job.direct_trial({"task": values})

    job.train_job = train  # a Ray Train job in this process
    study, task = _study(folder, demo, cache)
    winner = task(final_id(study.id), study.winner())
    train_winner(winner.to_dict(), str(folder / "train"))
    winner.directory.checkpoint.unlink(missing_ok=True)  # Ray Train's lie elsewhere, and are removed there
    measure_winner(winner.to_dict(), None)
    return {"test": winner.directory.read("test"), **_left(folder)}


def delivery(folder: Path, demo: Path, cache: Path) -> dict[str, Any]:
    """Deliver a search whose winner is tested to MLflow, from wherever an earlier attempt has stopped."""
    return delivered.deliver(folder, demo, _study(folder, demo, cache)[0])


def challenge(folder: Path, demo: Path, cache: Path) -> dict[str, Any]:
    """Let the winner of a search that is delivered meet the champion, from wherever an earlier attempt has stopped."""
    return delivered.challenge(folder, _study(folder, demo, cache)[0])


def _study(folder: Path, demo: Path, cache: Path) -> tuple[Any, Callable[..., Any]]:
    import optuna
    from optuna.distributions import FloatDistribution

    from msad.cluster.workers.task import Task
    from msad.search.study import Study
    from msad.training.job_config import JobConfig
    from msad.workspace import Workspace

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    workspace = Workspace(folder)
    base = JobConfig(
        category="brick", architecture="faulty:Faulty", image_size=32, epochs=EPOCHS, evaluate_every=1, batch_size=8
    )

    def task(job_id: str, config: JobConfig) -> Task:
        return Task(job_id=job_id, job=config, dataset=demo, cache=cache, directory=workspace.job(job_id), timeout=50)

    space = {"learning_rate": FloatDistribution(1e-4, 1e-2, log=True)}
    return Study(base, space, TRIALS, workspace.studies, "none"), task


def _left(folder: Path) -> dict[str, Any]:
    return {
        "results": {path.parent.name: json.loads(path.read_text()) for path in folder.glob("jobs/*/result.json")},
        "files": sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")),
    }


def watch_writes(folder: Path, before: Callable[[str], None]) -> None:
    """Have `before` called with a few words before every write below a folder."""
    import sqlalchemy

    statement = [""]

    def audited(event: str, words: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = words
            writes = (mode and set(mode) & set("wax+")) or (not mode and flags & (os.O_WRONLY | os.O_RDWR))
        else:
            path, writes = words[0] if words else "", event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
        if writes and isinstance(path, str | os.PathLike) and os.fspath(path).startswith(f"{folder}/"):
            name = Path(words[1] if event == "os.rename" else path).relative_to(folder).as_posix()
            name = re.sub(r"\.[0-9a-f]{8}\.(\w+)", r".*.\1", re.sub(r"\.\d+\.partial", ".partial", name))
            name = re.sub(r"[0-9a-f]{32}", "*", name)
            before(f"{event.removeprefix('os.')} {name.removeprefix('jobs/')}")

    def executed(_connection: Any, _cursor: Any, text: str, *_words: Any) -> None:
        if not text.startswith(("SELECT", "PRAGMA", "BEGIN")):
            statement[0] = " ".join(text.split()[:3])

    def committed(_connection: Any) -> None:
        if statement[0]:
            before(f"commit {statement[0]}")
            statement[0] = ""

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", executed)
    sqlalchemy.event.listen(sqlalchemy.Engine, "commit", committed)
    sys.addaudithook(audited)


def forked(work: Callable[[], None]) -> int:
    """Do some work in a process of its own; return how it ended, a signal's number negated."""
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        work()
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)


def main(folder: Path, demo: Path, cache: Path, asked: str, parts: str = "search,final,delivery,challenge") -> None:
    """Print each part's undisturbed outcome, and that of a kill in each of its windows that was asked for.

    `asked` is `all`, or a regular expression: of the windows that it is found in, each one's last is taken. It is asked
    of the `parts` that are named; the others are made undisturbed alone.
    """
    import torch

    from msad.cluster.sweep_search import SweepSearch  # noqa: F401
    from msad.models.registry import use
    from msad.pictures import curves, gallery  # noqa: F401 # so that each process has them

    torch.set_num_threads(1)
    use("faulty:Faulty")
    delivered.prepare()
    told: dict[str, Any] = {}
    places = {part: folder / part.__name__ / "whole" for part in (search, final, delivery, challenge)}
    begins = {final: places[search], delivery: places[final], challenge: folder / "later"}

    def make_store() -> None:
        delivered.make_store(begins[delivery])

    def make_challenge() -> None:
        place = Path(shutil.copytree(places[final], begins[challenge]))
        delivered.make_challenge(place, demo, _study(place, demo, cache)[0], places[delivery])

    first = {delivery: make_store, challenge: make_challenge}
    for part in places:
        assert part not in first or forked(first[part]) == 0

        def run(name: str, hook: Callable[[str], None], part: Callable[..., Any] = part) -> int:
            place = folder / part.__name__ / name
            if part in begins and not place.exists():
                shutil.copytree(begins[part], place)
            place.mkdir(parents=True, exist_ok=True)

            def work() -> None:
                watch_writes(place, hook)
                place.with_suffix(".json").write_text(json.dumps(part(place, demo, cache)))

            return forked(work)

        def outcome(name: str, part: Callable[..., Any] = part) -> dict[str, Any]:
            return json.loads((folder / part.__name__ / f"{name}.json").read_text())

        def note(name: str, part: Callable[..., Any] = part) -> None:
            with (folder / f"{part.__name__}.windows").open("a") as file:
                file.write(name + "\n")

        if part is search:
            assert run("cached", lambda _name: None) == 0  # fills the cache of decoded images
        assert run("whole", note) == 0
        if part.__name__ not in parts.split(","):
            continue
        windows = (folder / f"{part.__name__}.windows").read_text().splitlines()
        last = {name: number for number, name in enumerate(windows)}
        numbers = range(len(windows)) if asked == "all" else [n for name, n in last.items() if re.search(asked, name)]
        killed = {}
        for number in numbers:
            left = [number]

            def kill(_name: str, left: list[int] = left) -> None:
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1

            name = f"{number:03d}"
            ends = run(name, kill), run(name, lambda _name: None)
            killed[f"{name} {windows[number]}"] = {"ends": ends, "outcome": outcome(name) if not ends[1] else None}
        told[part.__name__] = {"windows": windows, "whole": outcome("whole"), "killed": killed}
    print(json.dumps(told))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), *sys.argv[4:])
