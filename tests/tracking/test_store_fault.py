"""Tracking stores that cannot be used: a line with the true cause and what to do, never `start it` for a file."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from msad.errors import TrackingError
from msad.sqlite_file import fault
from msad.tracking.store import connect


def refusal(uri):
    with pytest.raises(TrackingError) as told:
        connect(uri, create=True)
    text = str(told.value)
    assert "Start it" not in text and len(text.splitlines()) == 1
    return text


@pytest.mark.parametrize(
    ("uri", "advice"),
    [
        ("mlruns", "sqlite:///mlruns/mlflow.db"),
        ("./mlruns", "keeps runs in a folder no more"),
        ("file:///data/mlruns", "sqlite:////data/mlruns/mlflow.db"),
        ("track.db", "--tracking-uri sqlite:///track.db"),
        ("sqlite://track.db", "after three slashes: sqlite:///track.db"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
    ],
)
def test_address_that_is_none_of_a_store_is_refused_with_the_one_that_was_meant(uri, advice, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert advice in refusal(uri)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def made(client, uri):
    """The bytes of a database that MLflow has made."""
    return Path(uri.removeprefix("sqlite:///")).read_bytes()


@pytest.mark.parametrize(("length", "words"), [(60, "no SQLite database"), (50_000, "is cut off: it has 50,000 of")])
def test_database_that_is_cut_off_is_named_as_such(made, tmp_path, length, words):
    (tmp_path / "mlflow.db").write_bytes(made[:length])
    text = refusal(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert text.startswith(f"{tmp_path / 'mlflow.db'}: ") and words in text and "put back a copy" in text


@pytest.mark.parametrize(
    ("revision", "words"),
    [("0c779009ac13", "an older MLflow: keep a copy of it, then run `mlflow db upgrade sqlite:///"),
     ("f00dfacecafe", "a newer MLflow than the one that is installed")],
)  # fmt: skip
def test_database_of_another_mlflow_is_named_with_what_to_do(made, tmp_path, revision, words):
    path = tmp_path / "mlflow.db"
    path.write_bytes(made)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    assert words in refusal(f"sqlite:///{path}")


def test_folder_that_may_not_be_written_and_a_path_that_is_a_folder_are_named(tmp_path):
    assert "is a folder" in fault(tmp_path)
    (tmp_path / "file").touch()
    assert "is no folder" in fault(tmp_path / "file" / "mlflow.db")
    if os.geteuid():
        (tmp_path / "shut").mkdir(mode=0o500)
        assert "cannot be written" in fault(tmp_path / "shut" / "mlflow.db")


def test_database_that_another_process_holds_is_locked(made, tmp_path):
    path = tmp_path / "mlflow.db"
    path.write_bytes(made)
    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        assert fault(path) == "is locked by another process"
    assert fault(path) is None
