"""Ray as a sweep starts it: whose code it brings to the nodes, what it listens on, and what a failure says."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from msad.cluster.connection import connect, own_code
from msad.errors import ResourceError
from msad.search.config import make_config


def test_own_code_is_what_a_node_may_lack(own, tmp_path, monkeypatch):
    package = tmp_path / "my_package" / "detectors"
    package.mkdir(parents=True)
    (tmp_path / "my_package" / "__init__.py").touch()
    (package / "mine.py").write_text((own / "my_detector.py").read_text())
    monkeypatch.syspath_prepend(tmp_path)
    names = ["baseline", "my_detector:MyDetector", "my_package.detectors.mine:MyDetector"]
    config = make_config({"name": "a", "dataset": "d", "architectures": names})
    assert own_code(config) == {"py_modules": [str(own / "my_detector.py"), str(tmp_path / "my_package")]}
    assert own_code(make_config({"name": "a", "dataset": "d"})) == {}  # an empty list stops every worker of Ray's


def test_ray_that_cannot_be_started_is_an_error_for_the_user(monkeypatch):
    def init(**settings):
        raise Exception("The current node timed out during startup.\nand much more")

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("os.environ", dict(os.environ))  # connecting sets Ray's variables
    with pytest.raises(ResourceError, match=r"could not be started on this machine \(The current node timed out"):
        connect(make_config({"name": "a", "dataset": "d"}))


# Starts Ray as a sweep does, and prints what listens where: the command and the address of each.
LISTENING = """
import json, sys
import psutil
from msad.cluster.connection import connect
from msad.search.config import make_config
connect(make_config({"name": "a", "dataset": "d"}))
import ray
ray.get(ray.remote(lambda: 1).remote())
found, me = [], psutil.Process()
for process in [me, *me.children(recursive=True)]:
    try:
        name, connections = " ".join(process.cmdline()), process.net_connections("inet")
    except psutil.NoSuchProcess:
        continue
    found += [[name, connection.laddr.ip] for connection in connections if connection.status == "LISTEN"]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_ray_that_is_started_here_listens_on_the_loopback_address_alone():
    done = subprocess.run([sys.executable, "-c", LISTENING], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    programs = " ".join(program for program, _ in found)
    assert all(name in programs for name in ("gcs_server", "raylet", "dashboard.py")), programs
    assert {address.removeprefix("::ffff:") for _, address in found} == {"127.0.0.1"}, found
