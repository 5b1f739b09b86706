"""Optuna's database, locked, cut off, missing or no database; and what jobs left, damaged: one line with the cause."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import closing

import optuna
import pytest

from msad.errors import ResourceError
from msad.search.study_storage import database, open_studies, studies_told
from msad.sqlite_file import damage
from msad.workspace import Workspace


@pytest.fixture
def workspace(tmp_path):
    """A sweep with one trial."""
    workspace = Workspace(tmp_path / "first")
    workspace.root.mkdir()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    optuna.create_study(storage=open_studies(workspace), study_name="gear/baseline").ask()
    workspace.job("gear-baseline-0000").write("job", {})
    return workspace


def locked(path, seconds):
    """Hold a database in another thread, with a connection of its own, as another process does."""
    holding = threading.Event()

    def hold():
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            holding.set()
            time.sleep(seconds)

    thread = threading.Thread(target=hold)
    thread.start()
    holding.wait()
    return thread


def test_lock_that_ends_in_time_is_waited_for_and_one_that_does_not_is_one_line(workspace):
    thread = locked(database(workspace), 1.5)
    with pytest.raises(
        ResourceError, match=r"optuna.db: is locked by another process, for more than 0.2 seconds"
    ) as told:
        open_studies(workspace, patience=0.2)
    assert len(str(told.value).splitlines()) == 1 and "--resume first" in str(told.value)
    [name] = [study.study_name for study in optuna.get_all_study_summaries(open_studies(workspace))]
    assert name == "gear/baseline"
    thread.join()


def test_lock_in_mid_search_is_one_line_whatever_it_is_wrapped_in(workspace):
    study = optuna.load_study(storage=open_studies(workspace, patience=0.1), study_name="gear/baseline")
    thread = locked(database(workspace), 2)
    with pytest.raises(ResourceError, match="is locked by another process"), studies_told(workspace, 0.1):
        try:
            study.set_user_attr("seen", 1)
        except Exception as error:
            raise RuntimeError("as Ray Tune does") from error
    thread.join()


@pytest.mark.parametrize("length", [0, 50, 5000])
def test_database_that_is_cut_off_is_refused_and_not_begun_anew(workspace, length):
    path = database(workspace)
    whole = path.read_bytes()
    path.write_bytes(whole[:length])
    with pytest.raises(ResourceError, match=r"optuna.db: is (empty|cut off|no SQLite database)") as told:
        open_studies(workspace)
    assert len(str(told.value).splitlines()) == 1 and "--resume" not in str(told.value)
    assert path.read_bytes() == whole[:length]


def test_database_that_is_missing_is_refused_and_not_made_anew(workspace):
    database(workspace).unlink()
    with pytest.raises(ResourceError, match="is missing, and with it every trial"):
        open_studies(workspace)
    assert not database(workspace).exists()


def test_database_of_a_sweep_that_was_stopped_before_its_first_trial_is_made(workspace):
    (workspace.job("gear-baseline-0000").path / "job.json").unlink()
    database(workspace).write_bytes(b"")
    open_studies(workspace)
    assert damage(database(workspace)) is None


def test_errors_of_other_kinds_pass(workspace):
    with pytest.raises(ZeroDivisionError), studies_told(workspace):
        _ = 1 / 0


def test_damaged_files_of_jobs_are_all_named_before_anything_is_started(workspace):
    directory = workspace.job("gear-baseline-0000")
    (directory.path / "result.json").write_bytes(b"")
    (directory.path / "test.json").write_bytes(b'{"image_auroc": 0.')
    (directory.path / "tracking.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ResourceError) as told:
        workspace.check_jobs()
    result, test, tracking = str(told.value).splitlines()
    assert result.startswith(f"{directory.path / 'result.json'}: is empty: remove it")
    assert "test.json: is cut off or damaged" in test and "tracking.json: is cut off" in tracking
    with pytest.raises(ResourceError, match=r"result.json: is empty"):
        directory.read("result")
