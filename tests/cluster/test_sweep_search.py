"""Searcher and scheduler of a sweep, without Ray's own part: which job is handed out, what becomes of a bad end."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.distributions import FloatDistribution
from ray import cloudpickle
from ray.exceptions import RayTaskError
from ray.train import WorkerGroupError
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from msad.cluster.sweep_search import SweepSearch
from msad.cluster.trial_scheduler import Ending, OptunaPruning
from msad.cluster.workers.task import Task
from msad.errors import DiskFull, ResourceError, crash_reason
from msad.search.study import Study
from msad.search.study_storage import studies_told
from msad.training.job_config import JobConfig
from msad.workspace import JobDirectory, Workspace


class Heard(list):
    """Hears of trials, and keeps what it has heard."""

    def started(self, _study: Study, job_id: str) -> None:
        self.append(("started", job_id))

    def evaluated(self, _study: Study, job_id: str) -> None:
        self.append(("evaluated", job_id))

    def ended(self, _study: Study, job_id: str) -> None:
        self.append(("ended", job_id))


@pytest.fixture
def open_search(tmp_path):
    """Return a function that opens a sweep's searcher on the same storage, as a resumed sweep does."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def make(*categories: str, trials: int = 2, has_budget: bool = False) -> SweepSearch:
        studies = [
            Study(
                JobConfig(category=category, architecture="baseline"),
                {"learning_rate": FloatDistribution(1e-4, 1e-2, log=True)},
                trials,
                f"sqlite:///{tmp_path}/optuna.db",
                "none",
                has_budget=has_budget,
            )
            for category in categories
        ]

        def task(job_id: str, job: JobConfig) -> Task:
            folder = JobDirectory(tmp_path / "jobs" / job_id)
            return Task(job_id=job_id, job=job, dataset=tmp_path, cache=tmp_path, directory=folder)

        return SweepSearch(studies, task, {}, Heard())

    return make


def test_studies_are_asked_in_turn(open_search):
    search = open_search("brick", "gear")
    handed_out = [search.suggest(str(number))["task"]["job_id"] for number in range(4)]
    assert handed_out == [f"{name}-baseline-{number:04d}" for number in range(2) for name in ("brick", "gear")]
    assert search.suggest("4") == Searcher.FINISHED


def test_trial_that_may_be_too_slow_is_waited_for_and_replaced(open_search):
    search = open_search("brick", trials=1, has_budget=True)
    search.suggest("a")
    assert search.suggest("b") is None  # now; Tune asks again
    search.on_trial_complete("a", {"failure": "too slow", "teaches": True, "too_slow": [31.5, 20.0]})
    assert search.studies[0].counts().too_slow == 1
    assert search.suggest("b") == Searcher.FINISHED  # nothing of the network is searched, so any other is as slow
    assert search.studies[0].finished


def test_listener_hears_of_a_trial_from_its_start_to_its_end(open_search):
    search, trial = open_search("brick"), Trial("direct_trial", trial_id="a", stub=True)
    job_id = search.suggest("a")["task"]["job_id"]
    OptunaPruning(search).on_trial_result(None, trial, {"epoch": 1, "objective": 0.5})
    search.on_trial_complete("a", {"epoch": 1, "objective": 0.5, "best_objective": 0.5})
    assert search.listener == [("started", job_id), ("evaluated", job_id), ("ended", job_id)]


def test_trial_that_crashes_is_failed_with_what_was_said(open_search):
    search = open_search("brick")
    search.suggest("a")
    search.errors["a"] = "its worker crashed"
    search.on_trial_complete("a", error=True)
    assert [(record.state, record.failure) for record in search.studies[0].records()] == [
        ("failed", "its worker crashed")
    ]
    assert search.suggest("b") != Searcher.FINISHED


class Crashed(Trial):
    """A trial as Tune has it when its worker has raised an error; without Ray it has no place for its files."""

    def __init__(self, error: Exception, folder: Path) -> None:
        super().__init__("direct_trial", trial_id="a", stub=True)
        raised = RayTaskError("train", f"Traceback:\n{type(error).__name__}: {error}", error)
        self._folder = folder
        (folder / "error.txt").write_text(str(raised))
        (folder / "error.pkl").write_bytes(cloudpickle.dumps(raised))

    error_file = property(lambda self: str(self._folder / "error.txt"))
    pickled_error_file = property(lambda self: str(self._folder / "error.pkl"))


@pytest.mark.parametrize(
    "error",
    [
        DiskFull("progress.jsonl: cannot be written"),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "progress.jsonl"),
        WorkerGroupError("two failed", {0: RuntimeError("other"), 1: DiskFull("progress.jsonl: cannot be written")}),
    ],
)
def test_trial_that_met_a_full_disk_is_handed_out_again_by_the_next_sweep(open_search, tmp_path, error):
    search = open_search("brick")
    job_id = search.suggest("a")["task"]["job_id"]
    OptunaPruning(search).on_trial_error(None, Crashed(error, tmp_path))
    search.on_trial_complete("a", error=True)
    assert "progress.jsonl" in search.full_disk
    assert search.suggest("b") == Searcher.FINISHED, "another trial would only meet the same disk"
    assert search.studies[0].counts().failed == 0
    assert open_search("brick").suggest("c")["task"]["job_id"] == job_id


def test_node_without_the_sweeps_folder_fails_a_trial_and_is_not_taken_for_a_full_disk(open_search, tmp_path):
    search = open_search("brick")
    search.suggest("a")
    error = ResourceError("the node n2 does not see the sweep's folder /sweeps/first: mount it there")
    OptunaPruning(search).on_trial_error(None, Crashed(error, tmp_path))
    search.on_trial_complete("a", error=True)
    assert search.full_disk is None and search.suggest("b") != Searcher.FINISHED
    assert "the node n2 does not see the sweep's folder" in search.studies[0].records()[0].failure


def test_error_of_the_sweeps_own_database_ends_the_search_and_no_trial(open_search, tmp_path):
    search, trial = open_search("brick"), Trial("direct_trial", trial_id="a", stub=True)
    first = search.suggest("a")["task"]["job_id"]
    engine = search.studies[0]._optuna._storage._backend.engine

    def full(*_words) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    sqlalchemy.event.listen(engine, "before_cursor_execute", full)
    assert OptunaPruning(search).on_trial_result(None, trial, {"epoch": 1, "objective": 0.5}) == TrialScheduler.STOP
    search.on_trial_complete("a", {"epoch": 1, "objective": 0.5, "best_objective": 0.5})
    assert Ending(search).stop_all() and search.suggest("b") == Searcher.FINISHED
    workspace = Workspace(tmp_path)
    with (
        pytest.raises(DiskFull, match=r"optuna\.db: .*full.*free some space there, then go on with .*--resume"),
        studies_told(workspace),
    ):
        try:
            raise search.broken
        except sqlite3.OperationalError as error:  # as Optuna raises it, by way of SQLAlchemy
            raise optuna.exceptions.StorageInternalError("An exception is raised during the commit.") from error
    sqlalchemy.event.remove(engine, "before_cursor_execute", full)
    assert open_search("brick").suggest("c")["task"]["job_id"] == first


def test_epochs_that_a_killed_sweep_had_not_heard_of_are_in_the_study(open_search):
    killed = open_search("brick")
    task = Task.from_dict(killed.suggest("a")["task"])
    killed.studies[0].report(task.job_id, 1, 0.3)
    task.directory.path.mkdir(parents=True)
    for epoch in (1, 2):
        task.directory.append_progress({"epoch": epoch, task.job.objective: epoch / 10})
    resumed = open_search("brick")
    resumed.suggest("b")
    assert resumed.studies[0].frozen_trials()[0].intermediate_values == {1: 0.3, 2: 0.2}


def test_new_epochs_alone_give_a_trial_its_attempts_again(open_search):
    search, trial = open_search("brick"), Trial("direct_trial", trial_id="a", stub=True)
    search.suggest("a")
    scheduler, left = OptunaPruning(search), []
    for epoch in (1, 2, 1, 2, 3):  # after the second its worker was lost, and it began anew
        trial.run_metadata.num_failures = 1
        scheduler.on_trial_result(None, trial, {"epoch": epoch, "objective": 0.5})
        left.append(trial.run_metadata.num_failures)
    assert left == [0, 0, 1, 1, 0]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("", "no message"),
        ("Traceback:\n  a line\nValueError: too wide", "ValueError: too wide"),
        ("1 worker(s) were killed due to the node running low on memory. Memory ...", "its node was short of memory"),
        ("The actor died.\nWorker unexpectedly exits with a connection error", "its process was killed"),
        ("The actor died because its node has died. Node Id: 65045ab", "its node was lost"),
        ("The actor is unavailable: The actor is temporarily unavailable: RpcError", "its node was lost"),
        (
            "Failure # 1 \nnode running low on memory\nFailure # 2\n\nValueError: wide",
            "ValueError: wide",
        ),
    ],
)
def test_reason_of_a_crash_is_told_in_a_line(error, reason):
    assert crash_reason(error).startswith(reason) and "\n" not in crash_reason(error)
