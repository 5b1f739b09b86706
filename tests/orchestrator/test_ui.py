"""`msad ui` serves the store that a sweep wrote, on this machine only."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from mlflow import MlflowClient


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_ui_serves_the_default_store_on_the_loopback_address(tmp_path, port):
    MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").create_experiment("first", tags={"msad.sweep": "first"})
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", "ui", "--port", str(port)],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        page = fetch(f"http://127.0.0.1:{port}/", process)
        assert "<title>MLflow</title>" in page
        found = fetch(f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get-by-name?experiment_name=first", process)
        assert json.loads(found)["experiment"]["name"] == "first"
        listening = subprocess.run(["ss", "-ltn"], capture_output=True, text=True).stdout if has_ss() else ""
        assert f"0.0.0.0:{port}" not in listening
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def fetch(address: str, process: subprocess.Popen) -> str:
    """Read a page, waiting for the server to come up."""
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return answer.read().decode()
        except (urllib.error.URLError, ConnectionError):
            assert process.poll() is None and time.monotonic() < deadline, "the UI did not come up"
            time.sleep(0.5)


def has_ss() -> bool:
    return subprocess.run(["which", "ss"], capture_output=True).returncode == 0
