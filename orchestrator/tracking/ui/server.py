"""`msad ui`: MLflow's own server on a local store, and where to look first."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from importlib.metadata import entry_points

from msad.addresses import connecting, public
from msad.errors import TrackingError
from msad.tracking.compare import open_sweep
from msad.tracking.store import connect, default_tracking_uri
from msad.tracking.ui.pages import leaderboard_page

APP = "msad"  # the entry point of `msad.tracking.ui.app` in the group mlflow.app


def serve_ui(port: int, tracking_uri: str | None = None) -> int:
    """Run the MLflow UI for a local store until it is stopped, on the loopback address alone; return its exit code."""
    uri = public(tracking_uri or default_tracking_uri())
    if _is_served(uri):
        print(f"the MLflow UI of this store is at {uri}{_newest_sweep(uri, uri)}")
        return 0
    connect(uri)  # one that is not there, or cannot be opened, is an error, not an empty page
    address = f"http://127.0.0.1:{port}"
    print(f"MLflow UI: {address} (it takes some seconds; stop it with Ctrl-C){_newest_sweep(uri, address)}", flush=True)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    if any(point.name == APP for point in entry_points(group="mlflow.app")):
        command += ["--app-name", APP]
    environment = {
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": connecting(uri),  # not an option: every user of a machine sees those of a process
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # 13 processes less
    }
    command += ["--port", str(port), "--workers", "1"]
    return _run(command, environment)


def _run(command: list[str], environment: dict[str, str]) -> int:
    """Run a program until it ends or this one is asked to; leave none of its processes behind. Return its exit code."""
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        return process.wait()
    except (KeyboardInterrupt, SystemExit):
        return 0
    finally:
        signal.signal(signal.SIGTERM, before)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def browse(sweep: str, tracking_uri: str) -> str:
    """Return how to see a sweep in the MLflow UI: the address of its leaderboard on a server, else the command."""
    tracking_uri = public(tracking_uri)
    return leaderboard_url(sweep, tracking_uri, tracking_uri) if _is_served(tracking_uri) else "msad ui"


def leaderboard_url(sweep: str | None, tracking_uri: str, address: str) -> str:
    """Return where an MLflow UI shows a sweep's leaderboard; see `compare.leaderboard` for the parameters and errors.

    `address` is the UI's own, e.g. `http://127.0.0.1:5000`.
    """
    _, experiment = open_sweep(sweep, tracking_uri)
    return f"{address.rstrip('/')}/{leaderboard_page(experiment.experiment_id)}"


def _is_served(uri: str) -> bool:
    return uri.startswith(("http://", "https://", "databricks"))


def _newest_sweep(uri: str, address: str) -> str:
    try:
        return f"\nLeaderboard of the newest sweep: {leaderboard_url(None, uri, address)}"
    except TrackingError:  # no sweep yet, or a server that is not answering now
        return ""
