"""What is taken out of an address, what MLflow is given, and what of it stands in an error."""

from __future__ import annotations

import os

import pytest

from msad import addresses
from msad.addresses import PASSWORD, USER, connecting, hide_secrets, public


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    for name in ("_complete", "_replaced"):
        monkeypatch.setattr(addresses, name, {})
    monkeypatch.setattr(addresses, "_secrets", set())
    for name in (USER, PASSWORD, "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    yield
    for name in (USER, PASSWORD):  # what `connecting` has set
        os.environ.pop(name, None)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://anna:s3cret-word@host:5000/base", "http://host:5000/base"),
        ("https://anna:s3cret@word@host", "https://host"),
        ("https://s3cret-token@host/", "https://host/"),
        ("http://anna:s3/cret@host", "http://host"),
        (
            "postgresql://anna:s3cret%40word@host:5432/db?sslmode=require",
            "postgresql://anna@host:5432/db?sslmode=require",
        ),
        ("postgresql+psycopg2://host/db?user=a&password=s3cret", "postgresql+psycopg2://host/db?user=a"),
        ("mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3Ds3cret", "mssql+pyodbc:///"),
    ],
)
def test_public_address_has_no_secret_and_its_own_public_form_is_itself(address, shown):
    assert public(address) == shown == public(shown)


@pytest.mark.parametrize(
    "address",
    [
        "sqlite:////a/b@c/mlflow.db",
        "http://127.0.0.1:5000",
        "http://host:5000/team@work",
        "postgresql://host/db",
        "databricks",
        "",
    ],
)
def test_address_without_secrets_is_left_as_it_is(address):
    assert public(address) == address == connecting(address)
    assert USER not in os.environ


def test_servers_login_goes_to_the_environment_and_to_no_other_server():
    address = public("https://anna:s3cret%40word@first.example/mlflow")
    assert connecting(address) == address
    assert (os.environ[USER], os.environ[PASSWORD]) == ("anna", "s3cret@word")
    assert connecting("https://second.example") == "https://second.example"
    assert USER not in os.environ and PASSWORD not in os.environ


def test_servers_login_of_the_environment_comes_back_after_that_of_an_address(monkeypatch):
    monkeypatch.setenv(USER, "bert")
    connecting("http://anna:s3cret-word@first.example")
    assert os.environ[USER] == "anna"
    connecting("http://second.example")
    assert os.environ[USER] == "bert"


def test_password_of_a_database_is_given_to_mlflow_alone(monkeypatch):
    address = "postgresql://anna:s3cret-word@host/db"
    assert connecting(public(address)) == address
    addresses._complete.clear()  # another process resumes the sweep: the variable has the password
    assert connecting("postgresql://anna@host/db") == "postgresql://anna@host/db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert connecting("postgresql://anna@host/db") == address
    assert connecting("postgresql://anna@other/db") == "postgresql://anna@other/db"


def test_errors_show_neither_known_secrets_nor_passwords_in_any_address():
    public("postgresql://anna:s3cret%40word@host/db")
    text = "no role with 's3cret@word' at postgresql://anna:s3cret%40word@host/db, nor http://b:other@c/d"
    shown = hide_secrets(text)
    assert "s3cret" not in shown and "other" not in shown
    assert shown == "no role with '***' at postgresql://anna:***@host/db, nor http://b:***@c/d"


@pytest.mark.parametrize(
    ("given", "whole"),
    [
        ("sqlite:///track.db", "sqlite:///{folder}/track.db"),
        ("sqlite:///../a b/track.db?timeout=3", "sqlite:///{parent}/a b/track.db?timeout=3"),
        ("sqlite+pysqlite:///track.db", "sqlite+pysqlite:///{folder}/track.db"),
        ("sqlite:///~/track.db", "sqlite:///{home}/track.db"),
        ("sqlite:////var/track.db", "sqlite:////var/track.db"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
    ],
)
def test_relative_path_of_a_database_is_taken_from_the_folder_that_it_is_given_in(given, whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/anna")
    expected = whole.format(folder=tmp_path, parent=tmp_path.parent, home="/home/anna")
    assert public(given) == expected
    monkeypatch.chdir("/")
    assert public(expected) == expected


def test_relative_tracking_address_is_whole_from_the_option_the_variable_and_a_file(tmp_path, monkeypatch):
    from msad.search.config import load, make_config
    from msad.sweep.launch import resolved
    from msad.tracking.store import default_tracking_uri

    monkeypatch.chdir(tmp_path)
    whole = f"sqlite:///{tmp_path}/track.db"
    settings = {"name": "a", "dataset": "data"}
    assert resolved(make_config({**settings, "tracking_uri": "sqlite:///track.db"})).tracking_uri == whole
    (tmp_path / "sweep.yaml").write_text("name: a\ndataset: data\ntracking_uri: sqlite:///track.db\n")
    assert make_config(load(tmp_path / "sweep.yaml")).tracking_uri == whole
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///track.db")
    assert resolved(make_config(settings)).tracking_uri == default_tracking_uri() == whole


@pytest.mark.parametrize("part", ["what?", "50%25"])
def test_path_that_an_address_cannot_hold_is_refused_and_not_read_as_another(tmp_path, part):
    import sqlite3

    from optuna.storages import RDBStorage

    from msad.errors import ConfigError
    from msad.workspace import Workspace

    with pytest.raises(ConfigError, match=r"optuna\.db: a database cannot lie there.*choose another folder"):
        _ = Workspace(tmp_path / part / "sweep").studies
    fine = Workspace(tmp_path / "50% [a] #1 ü\u2215" / "sweep")
    fine.root.mkdir(parents=True)
    RDBStorage(fine.studies)
    assert sqlite3.connect(fine.root / "optuna.db").execute("SELECT count(*) FROM studies").fetchone() == (0,)
