"""What is taken out of an address, what MLflow is given, and what of it stands in an error."""

from __future__ import annotations

import os

import pytest

from orchestrator import addresses
from orchestrator.addresses import PASSWORD, USER, connecting, hide_secrets, public


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
