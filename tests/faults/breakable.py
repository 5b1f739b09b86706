"""What can be killed and started again: an MLflow server, a node of a Ray cluster, a process of Ray."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
RAY = str(Path(sys.executable).with_name("ray"))
RAY_WORKERS = ("ray::ImplicitFunc", "ray::RayTrainWorker", "ray::direct_trial", "ray::train_trial")


def environment(once: Path | None = None) -> dict[str, str]:
    """Return the variables of a command that finds the faulty detector, and not the store of the tests."""
    unwanted = {"MLFLOW_TRACKING_URI", "RAY_ADDRESS"}
    found = {name: value for name, value in os.environ.items() if name not in unwanted}
    path = os.pathsep.join(filter(None, [str(HERE), str(HERE.parents[1]), found.get("PYTHONPATH")]))
    # Ray's workers yield to all other processes, for ever where a machine is busy.
    return found | {"PYTHONPATH": path, "RAY_worker_niceness": "0"} | ({"FAULTY_ONCE": str(once)} if once else {})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class MlflowServer:
    """A real server with a database and artifacts of its own in `folder`, which survive its end."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        places = [
            f"--backend-store-uri=sqlite:///{self.folder}/mlflow.db",
            f"--artifacts-destination={self.folder}/files",
        ]
        with (self.folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", "--workers=1", f"--port={self.port}", *places],
                env=environment() | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        while True:
            assert self._process.poll() is None, (self.folder / "log").read_text()
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)

    def kill(self) -> None:
        if self._process is not None:
            stop(self._process)
            self._process = None


@contextlib.contextmanager
def ray_head(variables: dict[str, str], *words: str) -> Iterator[tuple[str, str, subprocess.Popen]]:
    """Start a head node of two CPUs with ports and a folder of its own; yield its address, its dashboard's, and it.

    The dashboard answers some seconds later.
    """
    port, dashboard = free_port(), free_port()
    # Ray's sockets want a short path.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        own = ["--num-cpus=2", f"--temp-dir={folder}", f"--port={port}", f"--dashboard-port={dashboard}"]
        process = subprocess.Popen(
            [RAY, "start", "--head", "--block", *own, *words],
            env=variables,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", process
        finally:
            stop(process)


def stop(process: subprocess.Popen) -> None:
    """End a session of processes at once: asked kindly, Ray takes half a minute."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class TwoNodes:
    """A Ray cluster of two nodes with a CPU each on this machine; the second one can be killed and replaced.

    Use as a context manager. Its workers inherit this process's variables.
    """

    def __enter__(self) -> TwoNodes:
        from ray.cluster_utils import Cluster

        self._patch, self.second = pytest.MonkeyPatch(), None
        # Ray's sockets want a short path.
        self._folder = tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True)
        self._patch.setenv("RAY_TMPDIR", self._folder.name)
        for name in ("PYTHONPATH", "RAY_worker_niceness"):
            self._patch.setenv(name, environment()[name])
        head = {"num_cpus": 1, "include_dashboard": False, "dashboard_port": free_port()}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = self._cluster.address
        self.add()
        return self

    def __exit__(self, *_error: object) -> None:
        self._cluster.shutdown()
        self._patch.undo()
        self._folder.cleanup()

    def add(self) -> None:
        # An address of its own, or the driver may take this node, which is to be killed, for its own.
        self.second = self._cluster.add_node(num_cpus=1, node_ip_address="127.0.0.2")

    def lose(self) -> None:
        """Kill all processes of the second node."""
        node, self.second = self.second, None
        self._cluster.remove_node(node, allow_graceful=False)

    def lose_head(self) -> None:
        """Kill the first node's own process of Ray; what holds the cluster together stays."""
        self._cluster.head_node.kill_raylet()


def descendants(root: int, *titles: str) -> dict[int, str]:
    """Return the title of each process below `root` (its children, theirs, ...) that begins with one of these."""
    parent, title = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            pid = int(folder.name)
            parent[pid] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            title[pid] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except (OSError, IndexError):  # it has ended meanwhile
            continue

    def below(pid: int) -> bool:
        while pid in parent:
            pid = parent[pid]
            if pid == root:
                return True
        return False

    return {pid: name for pid, name in title.items() if name.startswith(titles) and below(pid)}


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
