"""Which store there is, and the experiment of a sweep in it: by the sweep's identity, whatever either is called."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import textwrap
import threading

import pytest

from msad.errors import ConfigError, TrackingError
from msad.tracking.store import connect, find_experiment, open_experiment


def test_unreachable_server_is_named_after_a_few_attempts():
    attempts = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up():
            while True:
                try:
                    server.accept()[0].close()
                except OSError:  # the test is over
                    return
                attempts.append(1)

        threading.Thread(target=hang_up, daemon=True).start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(TrackingError, match="cannot be reached") as error:
            connect(address)
        server.shutdown(socket.SHUT_RDWR)
    assert 1 <= len(attempts) <= 3, "MLflow's own 7 attempts take minutes"
    assert address in str(error.value) and "--tracking-uri" in str(error.value)


def test_store_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "mlflow.db").write_text("this is no database, only a file of the same name\n" * 20)
    with pytest.raises(TrackingError, match=r"mlflow\.db: is no SQLite database"):
        connect(f"sqlite:///{tmp_path / 'mlflow.db'}")


def test_reading_makes_no_store(tmp_path):
    with pytest.raises(TrackingError, match=r"nowhere/mlflow\.db: no such database.*--tracking-uri"):
        connect(f"sqlite:///{tmp_path}/nowhere/mlflow.db")
    assert not list(tmp_path.iterdir())


def test_experiment_is_opened_again_by_its_own_sweep_alone(client, uri):
    mine = open_experiment(client, "mine", uri, "id-1")
    assert open_experiment(client, "mine", uri, "id-1") == mine
    for other in ("id-2", None):  # one whose folder was removed, and a new one of its name
        with pytest.raises(ConfigError, match=r"earlier one named 'mine'.*choose another --name") as error:
            find_experiment(client, "mine", uri, other)
        assert uri in str(error.value) and f"--experiment-ids {mine}" in str(error.value)
    client.delete_experiment(mine)
    with pytest.raises(ConfigError, match=rf"was deleted.*mlflow experiments restore --experiment-id {mine}"):
        open_experiment(client, "mine", uri, "id-1")


def test_experiment_renamed_in_the_ui_is_still_its_sweeps(client, uri):
    mine = open_experiment(client, "spring", uri, "id-3")
    client.rename_experiment(mine, "the good one")
    assert open_experiment(client, "spring", uri, "id-3") == mine
    with pytest.raises(ConfigError, match=r"'the good one' already.*earlier one named 'spring'"):
        find_experiment(client, "spring", uri, None)


def test_sweep_of_an_older_version_finds_its_experiment_by_the_folder_it_lay_in(client, uri):
    old = client.create_experiment("old", tags={"msad.sweep": "old", "msad.workspace": "/data/sweeps/old"})
    assert open_experiment(client, "old", uri, "path:/data/sweeps/old") == old


def test_artifacts_of_a_local_store_lie_beside_its_database(client, uri):
    location = client.get_experiment(open_experiment(client, "placed", uri, "id-4")).artifact_location
    assert location == f"{uri.removeprefix('sqlite:///').removesuffix('mlflow.db')}mlartifacts/placed"


def test_store_whose_maker_was_killed_is_not_there_and_the_next_one_makes_it(tmp_path):
    """It stayed behind between two of MLflow's steps, and was refused as one of an older MLflow."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    code = """
        import os, signal, sys
        import sqlalchemy
        from msad.tracking.store import connect

        @sqlalchemy.event.listens_for(sqlalchemy.Engine, "before_cursor_execute")
        def at(_connection, _cursor, statement, *_rest):
            if statement.startswith("UPDATE alembic_version"):
                at.steps = getattr(at, "steps", 0) + 1
                if at.steps == 5:
                    os.kill(os.getpid(), signal.SIGKILL)

        connect(sys.argv[1], create=True)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), uri], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not list(tmp_path.iterdir())
    assert connect(uri, create=True).search_experiments()[0].name == "Default"
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_two_that_make_a_store_at_once_use_the_same(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    code = """
        import sys
        from msad.tracking.store import connect
        connect(sys.argv[1], create=True).create_experiment(sys.argv[2])
    """
    both = [subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), uri, name]) for name in ("one", "two")]
    assert [one.wait() for one in both] == [0, 0]
    assert {one.name for one in connect(uri).search_experiments()} == {"Default", "one", "two"}
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
