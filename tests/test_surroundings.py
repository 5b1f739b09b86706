"""A process without a user's name or a home, and a temporary folder whose path is too long for Ray's sockets."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
from pathlib import Path

import pytest

from msad import surroundings
from msad.data_io.array_cache import default_cache_dir

REPOSITORY = Path(__file__).parents[1]

NOBODY = """
import getpass, pwd, sys
def getpwuid(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = getpwuid  # as where a container runs under an arbitrary user ID
from msad.tracking.store import connect
client = connect(f"sqlite:///{sys.argv[1]}/mlflow.db", create=True)
run = client.create_run("0", tags={"mlflow.user": getpass.getuser()})
from msad.data_io.array_cache import cached_arrays, default_cache_dir
import numpy
cached_arrays("key", lambda: {"a": numpy.zeros(3)}, default_cache_dir())
print(client.get_run(run.info.run_id).data.tags["mlflow.user"], default_cache_dir())
"""


def test_process_without_a_name_and_a_home_tracks_and_caches(tmp_path):
    gone = ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME", "MSAD_CACHE", "XDG_CACHE_HOME", "MLFLOW_TRACKING_URI")
    environment = {name: value for name, value in os.environ.items() if name not in gone}
    environment |= {"TMPDIR": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", NOBODY, str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    user, cache = done.stdout.split()
    assert user == f"uid{os.getuid()}" and Path(cache).is_relative_to(tmp_path)


def test_process_that_has_a_name_and_a_home_keeps_them(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LOGNAME", "anna")
    monkeypatch.setenv("MPLCONFIGDIR", "")
    surroundings.complete()
    assert (os.environ["HOME"], getpass.getuser()) == (str(tmp_path), "anna")


def test_cache_of_a_home_that_cannot_be_written_is_in_the_temporary_folder(monkeypatch, tmp_path):
    for name in ("MSAD_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "msad"
    monkeypatch.setattr("os.access", lambda *_: False)  # the tests may run as root, who may write anywhere
    assert not default_cache_dir().is_relative_to(tmp_path / ".cache")


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_ray_gets_a_short_folder_where_the_temporary_one_has_a_long_path(monkeypatch, tmp_path, variable):
    for name in ("TMPDIR", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    assert surroundings.ray_folder() is None
    monkeypatch.setenv(variable, str(tmp_path / ("long" * 25)))
    assert len(surroundings.ray_folder()) < 20
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(PermissionError):
        surroundings.ray_folder()
