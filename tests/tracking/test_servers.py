"""A sweep on the servers of docs/tracking.md and docs/security.md: MLflow with users, PostgreSQL, proxied artifacts.

What is written anywhere is searched for the secrets that the sweep was given, and what listens is looked at meanwhile.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.faults.breakable import free_port, ray_head

SECRETS = {
    "MLFLOW_TRACKING_PASSWORD": "Secret-of-tracking-1",
    "AWS_SECRET_ACCESS_KEY": "Secret-of-storage-2",
    "AWS_SESSION_TOKEN": "Secret-of-session-3",
}
DATABASE_PASSWORD = "Secret-of-database-4"
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "Secret-of-the-cluster-5-" * 2}
USER = {"MLFLOW_TRACKING_USERNAME": "admin", "AWS_ACCESS_KEY_ID": "key-of-the-store"}
SMALL = ["--image-size", "32", "--epochs", "2", "--set", "model/base_width=4", "--set", "model/depth=2"]
ASKED = ("api/jobs/", "api/cluster_status", "nodes?view=summary", "nodes?view=details", "api/train/v2/runs/v1")
ASKED += tuple(f"api/v0/{kind}?detail=1" for kind in ("actors", "tasks", "workers", "runtime_envs", "jobs"))


def environment(**more: str) -> dict[str, str]:
    """Return this process's variables without a tracking store, and more."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")} | more


def msad(*words: str, folder: Path, **more: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "msad", *words],
        cwd=folder,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=900,
    )


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """The address of an empty database in a PostgreSQL server of the tests' own."""
    server = shutil.which("postgres") or next(
        (str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))), None
    )
    pytest.importorskip("psycopg", reason="no driver of PostgreSQL: pip install 'psycopg[binary]'")
    if server is None:
        pytest.skip("no PostgreSQL: install it (Debian: apt install postgresql)")
    programs, port = Path(server).resolve().parent, free_port()
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp") as name:  # its socket wants a short path
        folder = Path(name)
        (folder / "password").write_text(DATABASE_PASSWORD)
        unprivileged = {}
        if os.getuid() == 0:  # as whom PostgreSQL refuses to run
            unprivileged = {"user": "nobody", "group": "nogroup", "extra_groups": []}
            for path in (folder, folder / "password"):
                shutil.chown(path, "nobody", "nogroup")
        words = ["-D", str(folder / "data"), "-U", "msad", "--auth=scram-sha-256", "--no-sync"]
        made = [programs / "initdb", *words, f"--pwfile={folder / 'password'}"]
        subprocess.run(made, check=True, capture_output=True, cwd="/", **unprivileged)
        settings = ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}"]
        process = subprocess.Popen(
            [server, "-D", str(folder / "data"), "-p", str(port), *settings],
            cwd="/",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **unprivileged,
        )
        try:
            import psycopg

            login, deadline = f"postgresql://msad:{DATABASE_PASSWORD}@127.0.0.1:{port}", time.monotonic() + 60
            while True:
                try:
                    with psycopg.connect(f"{login}/postgres", autocommit=True) as connection:
                        connection.execute("create database mlflow")
                    break
                except psycopg.OperationalError:
                    assert process.poll() is None and time.monotonic() < deadline, "PostgreSQL did not come up"
                    time.sleep(0.2)
            yield f"{login}/mlflow"
        finally:
            process.terminate()
            process.wait(60)


@pytest.fixture(scope="module")
def server(postgresql, tmp_path_factory) -> Iterator[str]:
    """The address of an MLflow server with users, on PostgreSQL, that passes the artifacts on itself."""
    pytest.importorskip("flask_wtf", reason="no users in MLflow: pip install 'mlflow[auth]'")
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    (folder / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = sqlite:///{folder / 'users.db'}\n"
        "admin_username = admin\nauth_cache_ttl_seconds = 60\n"
    )
    words = ["--app-name", "basic-auth", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    words += ["--serve-artifacts", "--artifacts-destination", str(folder / "artifacts")]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *words],
        cwd=folder,
        env=environment(
            MLFLOW_BACKEND_STORE_URI=postgresql,
            MLFLOW_AUTH_CONFIG_PATH=str(folder / "auth.ini"),
            MLFLOW_AUTH_ADMIN_PASSWORD=SECRETS["MLFLOW_TRACKING_PASSWORD"],
            MLFLOW_FLASK_SERVER_SECRET_KEY="a key of this test",
            MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
        ),
        stdout=(log := (folder / "server.log").open("w")),
        stderr=log,
    )
    try:
        deadline = time.monotonic() + 600
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                assert process.poll() is None and time.monotonic() < deadline, (folder / "server.log").read_text()
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        for child in [*psutil.Process(process.pid).children(recursive=True), process]:
            child.kill()
        process.wait()


@dataclass
class Swept:
    """A finished sweep: its folder, what it printed, and what its processes listened on while it ran."""

    folder: Path
    ray: Path
    output: str = ""
    listening: set[tuple[str, str]] = field(default_factory=set)  # program, address


@pytest.fixture(scope="module")
def swept(server, demo, tmp_path_factory) -> Iterator[Swept]:
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as ray:  # Ray's sockets want a short path
        seen = Swept(tmp_path_factory.mktemp("swept"), Path(ray))
        words = ["search", "--dataset", str(demo), "--categories", "brick", "--architectures", "baseline"]
        words += ["--trials", "2", "--executor", "train", "--name", "served", "--tracking-uri", server, *SMALL]
        with (seen.folder / "output").open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "msad", *words],
                cwd=seen.folder,
                env=environment(**SECRETS, **USER, RAY_TMPDIR=ray),
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            deadline = time.monotonic() + 1500
            while process.poll() is None:
                assert time.monotonic() < deadline, (seen.folder / "output").read_text()
                look(psutil.Process(process.pid), seen)
                time.sleep(1)
        seen.output = (seen.folder / "output").read_text()
        assert process.returncode == 0, seen.output
        yield seen


def look(driver: psutil.Process, seen: Swept) -> None:
    """Note what the processes of a sweep listen on."""
    for process in [driver, *driver.children(recursive=True)]:
        try:
            program = " ".join(process.cmdline())
            addresses = [found.laddr for found in process.net_connections("inet") if found.status == "LISTEN"]
        except psutil.Error:
            continue
        seen.listening |= {(program[:120], address.ip) for address in addresses}


@pytest.fixture
def head() -> Iterator[tuple[str, str]]:
    """The addresses of a Ray cluster of one node with a token, and of its dashboard."""
    with ray_head(environment(**TOKEN)) as (address, dashboard, process):
        deadline = time.monotonic() + 120
        while not answer(f"{dashboard}/api/version"):
            assert process.poll() is None and time.monotonic() < deadline, "Ray did not come up"
            time.sleep(0.5)
        yield address, dashboard


def answer(address: str) -> str:
    """Return what an address of Ray's dashboard answers, empty where it does not."""
    headers = {"Authorization": f"Bearer {TOKEN['RAY_AUTH_TOKEN']}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=5) as got:
            return got.read().decode()
    except (OSError, ValueError):
        return ""


def found_in(text: bytes) -> list[str]:
    return [
        secret for secret in (*SECRETS.values(), DATABASE_PASSWORD, TOKEN["RAY_AUTH_TOKEN"]) if secret.encode() in text
    ]


@pytest.mark.slow
def test_sweep_on_postgresql_with_users_is_compared_and_pulled(swept, server, tmp_path):
    login = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": SECRETS["MLFLOW_TRACKING_PASSWORD"]}
    done = msad("compare", "served", "--json", "-", "--tracking-uri", server, folder=tmp_path, **login)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert (row["category"], row["architecture"], row["trials"], row["best"]) == ("brick", "baseline", 2, True)
    pulled = msad("pull", "brick@champion", "--to", "model", "--tracking-uri", server, folder=tmp_path, **login)
    assert pulled.returncode == 0, pulled.stderr
    assert json.loads((tmp_path / "model" / "bundle.json").read_text())["provenance"]["run_id"] == row["run_id"]
    shown = msad("ui", "--tracking-uri", server, folder=tmp_path, **login)
    assert shown.returncode == 0 and f"the MLflow UI of this store is at {server}" in shown.stdout


@pytest.mark.slow
def test_without_the_password_nothing_is_shown(swept, server, tmp_path):
    wrong = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": "Secret-that-is-wrong"}
    for login in ({}, wrong):
        done = msad("compare", "served", "--tracking-uri", server, folder=tmp_path, **login)
        assert done.returncode == 2 and "cannot be reached" in done.stderr and server in done.stderr, done.stderr
        assert "Secret-that-is-wrong" not in done.stdout + done.stderr


@pytest.mark.slow
def test_login_in_the_address_is_in_no_process_list(swept, server, tmp_path):
    password = SECRETS["MLFLOW_TRACKING_PASSWORD"]
    address = server.replace("http://", f"http://admin:{password}@")
    process = subprocess.Popen(
        [sys.executable, "-m", "msad", "compare", "served", "--tracking-uri", address],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = set()
    while process.poll() is None:
        try:
            lines.add(" ".join(psutil.Process(process.pid).cmdline()))
        except psutil.Error:
            break
        time.sleep(0.02)
    output = process.communicate()[0]
    assert process.returncode == 0 and "brick" in output and password not in output
    assert any(server in line and password not in line for line in lines), lines


@pytest.mark.slow
def test_everything_that_a_sweep_starts_listens_on_the_loopback_address_alone(swept):
    programs = " ".join(program for program, _ in swept.listening)
    assert all(name in programs for name in ("gcs_server", "raylet", "dashboard.py")), programs
    exposed = {seen for seen in swept.listening if seen[1].removeprefix("::ffff:") not in ("127.0.0.1", "::1")}
    assert not exposed


@pytest.mark.slow
def test_no_secret_is_printed_or_written_into_any_file(swept, server):
    folders = [swept.folder, swept.ray, Path(os.environ["MSAD_CACHE"])]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len([path for path in files if path.suffix == ".log"]) > 5, "Ray's logs are elsewhere"
    assert any(path.name == "sweep.yaml" for path in files)
    assert not {str(path): secrets for path in files if (secrets := found_in(path.read_bytes()))}


@pytest.mark.slow
def test_no_secret_is_in_the_tracking_store_or_its_artifacts(swept, server, postgresql, tmp_path_factory):
    import psycopg

    with psycopg.connect(postgresql) as connection:
        tables = connection.execute("select tablename from pg_tables where schemaname = 'public'").fetchall()
        rows = {name: str(connection.execute(f'select * from "{name}"').fetchall()) for (name,) in tables}
    assert "admin" not in rows["params"] and "learning_rate" in rows["params"]
    assert not {name: secrets for name, text in rows.items() if (secrets := found_in(text.encode()))}
    artifacts = next(tmp_path_factory.getbasetemp().glob("server*")) / "artifacts"
    files = [path for path in artifacts.rglob("*") if path.is_file()]
    assert any(path.name == "model.safetensors" for path in files)
    assert not [path for path in files if found_in(path.read_bytes())]


@pytest.mark.slow
def test_rays_dashboard_shows_no_secret(head, server, demo, tmp_path):
    address, dashboard = head
    words = ["train", "--dataset", str(demo), "--categories", "brick", "--architectures", "baseline", *SMALL]
    words += ["--address", address, "--storage", str(tmp_path / "sweeps"), "--tracking-uri", server]
    process = subprocess.Popen(
        [sys.executable, "-m", "msad", *words, "--executor", "train", "--name", "shown"],
        cwd=tmp_path,
        env=environment(**SECRETS, **USER, **TOKEN),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    answers = dict.fromkeys(ASKED, "")
    while process.poll() is None:
        answers = {path: text + answer(f"{dashboard}/{path}") for path, text in answers.items()}
        time.sleep(1)
    assert process.returncode == 0, process.communicate()[0]
    must = {f"api/v0/{kind}?detail=1" for kind in ("actors", "tasks", "workers", "runtime_envs")}
    assert all(answers[path] for path in must | {"api/jobs/", "api/cluster_status"}), answers.keys()
    assert "RayTrainWorker" in answers["api/v0/actors?detail=1"], "it shows another cluster"
    assert not {path: secrets for path, text in answers.items() if (secrets := found_in(text.encode()))}
