"""What workers leave in an object store: tried on a folder by its address, and on a real S3-compatible server."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from msad.cluster.nodes import node_problems, require_sweep
from msad.cluster.workers.attempt import attempt
from msad.cluster.workers.object_store import below, write_file
from msad.cluster.workers.task import Task
from msad.cluster.workers.worker_storage import claim, fetch, remove_checkpoints, working_copy
from msad.code_version import code_digest
from msad.errors import ConfigError, ResourceError
from msad.search.config import make_config
from msad.training.job_config import JobConfig
from msad.workspace import JobDirectory
from tests.faults.breakable import free_port

SMALL = ["--image-size", "32", "--set", "model/base_width=4", "--set", "model/depth=2"]
KEYS = {"AWS_ACCESS_KEY_ID": "key-of-the-store", "AWS_SECRET_ACCESS_KEY": "secret-of-the-store"}


@pytest.fixture
def store(tmp_path):
    """The address of a job's folder in a store, which is a folder here."""
    return f"file://{tmp_path}/store/first/jobs/a"


@pytest.fixture
def task(tmp_path, store):
    job = JobConfig(category="brick", architecture="baseline")
    directory = JobDirectory(tmp_path / "sweeps" / "first" / "jobs" / "a")
    return Task(job_id="a", job=job, dataset=tmp_path, cache=tmp_path, directory=directory, store=store)


def test_worker_works_on_a_copy_and_the_sweep_gets_what_it_wrote(task, store):
    with working_copy(task) as (copied, upload):
        assert copied.directory.path != task.directory.path
        copied.directory.append_progress({"epoch": 1, "validation_score": 0.5})
        upload()
        fetch(store, task.directory, progress_only=True)
        assert task.directory.progress() == [{"epoch": 1, "validation_score": 0.5}]
        copied.directory.write("result", {"epoch": 1})
        copied.directory.bundle.mkdir()
        (copied.directory.bundle / "model.safetensors").write_bytes(b"weights")
    fetch(store, task.directory)
    assert task.directory.read("result") == {"epoch": 1}
    assert (task.directory.bundle / "model.safetensors").read_bytes() == b"weights"
    assert not copied.directory.path.exists()


def test_second_attempt_goes_on_from_what_the_first_has_uploaded(task, store):
    with pytest.raises(RuntimeError), working_copy(task) as (copied, upload):
        copied.directory.checkpoint.write_bytes(b"epoch 1")
        copied.directory.append_progress({"epoch": 1})
        upload()
        copied.directory.append_progress({"epoch": 2})
        raise RuntimeError("its node is gone")
    with working_copy(task) as (copied, _):
        assert copied.directory.checkpoint.read_bytes() == b"epoch 1"
        assert copied.directory.progress() == [{"epoch": 1}]
        copied.directory.checkpoint.unlink()
    with working_copy(task) as (copied, _):
        assert not copied.directory.checkpoint.exists(), "what a worker removes is removed from the store"


def test_failure_of_an_earlier_attempt_goes_and_the_sweeps_own_files_stay(task, store):
    task.directory.write("failure", {"reason": "of an earlier attempt"})
    task.directory.write("tracking", {"run_id": "r"})
    with working_copy(task) as (copied, _):
        copied.directory.write("result", {"epoch": 1})
    fetch(store, task.directory)
    assert task.directory.read("failure") is None and task.directory.read("tracking") == {"run_id": "r"}


DIES = """
import json, sys, time
from msad.cluster.workers.attempt import attempt
from msad.cluster.workers.task import Task
from msad.cluster.workers.worker_storage import working_copy

def stands_still(task, *, report, group):
    (task.directory.path / "large").write_bytes(b"0" * 1000)
    print("stands still", flush=True)
    time.sleep(600)

with working_copy(Task.from_dict(json.loads(sys.argv[1]))) as (task, _):
    attempt(stands_still, task, report=None)
"""


def dies(task, temporary, kill=None):
    """Run a worker that stands still in its copy of a job's folder until it is ended; wait for what survives it."""
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", DIES, json.dumps(task.to_dict())]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as worker:
        assert worker.stdout.readline() == b"stands still\n"
        assert len([*temporary.rglob("large")]) == 1
        if kill:
            worker.send_signal(kill)
    deadline = time.monotonic() + 60
    while any(temporary.iterdir()):
        assert time.monotonic() < deadline, [*temporary.rglob("*")]
        time.sleep(0.05)
    return worker.returncode


def test_worker_that_hangs_is_known_to_the_next_attempt_and_leaves_no_copy(task, tmp_path):
    task = dataclasses.replace(task, timeout=0.01)  # minutes
    assert dies(task, tmp_path / "temporary") == 1
    reports = []
    with working_copy(task) as (copied, _):
        attempt(pytest.fail, copied, report=lambda metrics, state: reports.append(metrics))
    assert "it hung in stands_still (<string>:" in reports[-1]["failure"]


def test_worker_that_is_killed_leaves_no_copy_and_is_tried_again(task, tmp_path):
    task = dataclasses.replace(task, timeout=60)
    assert dies(task, tmp_path / "temporary", kill=signal.SIGKILL) == -signal.SIGKILL
    tried = []
    with working_copy(task) as (copied, _):
        attempt(lambda _task, report, group: report({}, None), copied, report=lambda *told: tried.append(told))
    assert tried == [({}, None)]


def test_without_a_store_the_folder_is_the_shared_one(task):
    with working_copy(dataclasses.replace(task, store=None)) as (same, upload):
        upload()
        assert same.directory == task.directory


def test_store_that_holds_files_of_that_name_is_refused_to_a_new_sweep_alone(tmp_path, store):
    address = f"file://{tmp_path}/store"
    claim(address, "first", new=True)
    claim(address, "first", new=True)  # trying it has left nothing behind
    write_file(store, "result.json", b"{}")
    with pytest.raises(ConfigError, match="holds files of a sweep named 'first' already: choose another --name"):
        claim(address, "first", new=True)
    claim(address, "first", new=False)


def test_store_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match=r"--worker-storage file://.*/file cannot be reached"):
        claim(f"file://{tmp_path}/file", "first", new=True)


def test_address_of_an_unknown_kind_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="--worker-storage ftp://host/a/first: "):
        claim("ftp://host/a", "first", new=True)


def test_arguments_stay_at_the_end_of_an_address():
    assert below("s3://bucket/a/?region=r", "first", "jobs") == "s3://bucket/a/first/jobs?region=r"


@pytest.mark.parametrize(
    "values",
    [
        {"worker_storage": "s3://key:hidden-secret@bucket/sweeps"},
        {"worker_storage": "s3://bucket/sweeps?secret_token=hidden-secret"},
    ],
)
def test_credentials_in_the_address_are_refused_and_not_shown(values, tmp_path):
    from msad.addresses import hide_secrets

    with pytest.raises(ConfigError, match="credentials do not belong into the address") as refused:
        make_config({"name": "first", "dataset": tmp_path, **values})
    assert "hidden-secret" not in hide_secrets(str(refused.value))


def test_object_store_as_the_sweeps_own_folder_is_refused_with_what_to_do(tmp_path):
    for storage in ("s3://bucket/sweeps", Path("s3://bucket/sweeps")):
        with pytest.raises(ConfigError, match="give the object store as --worker-storage"):
            make_config({"name": "first", "dataset": tmp_path, "storage": storage})
    with pytest.raises(ConfigError, match="a folder that all nodes share is --storage"):
        make_config({"name": "first", "dataset": tmp_path, "worker_storage": "/shared"})


def test_node_that_cannot_read_the_store_says_so(tmp_path):
    address = f"file://{tmp_path}/store/first/nodes"
    asked = ("token", str(tmp_path), "0", code_digest())
    (problem,) = node_problems(address, *asked)
    assert "it cannot read and write" in problem and "credentials" in problem
    write_file(address, "token", b"another")
    (problem,) = node_problems(address, *asked)
    assert "it has other files at" in problem
    write_file(address, "token", b"token")
    assert node_problems(address, *asked) == []


def test_job_with_a_store_needs_no_folder_of_the_sweep_on_its_node(task):
    require_sweep(task)


def test_checkpoints_are_removed_from_a_folder_and_from_a_store(tmp_path):
    for storage in (str(tmp_path), f"file://{tmp_path}"):
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "checkpoint.pt").touch()
        remove_checkpoints(storage, "a")
        remove_checkpoints(storage, "a")
        assert not (tmp_path / "a").exists()


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """The address of a folder in a bucket of a real S3-compatible server; moto's, in an environment of its own."""
    server = shutil.which(os.environ.get("MSAD_MOTO_SERVER", "moto_server"))
    if server is None:
        pytest.skip("no moto_server: pip install 'moto[server]', and set MSAD_MOTO_SERVER where it is not on the PATH")
    port = free_port()
    log = (tmp_path_factory.mktemp("moto") / "log").open("w")
    process = subprocess.Popen([server, "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=5).close()
                break
            except (urllib.error.URLError, ConnectionError):
                assert process.poll() is None and time.monotonic() < deadline, "moto did not come up"
                time.sleep(0.2)
        urllib.request.urlopen(
            urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT"), timeout=10
        ).close()
        yield f"s3://bucket/sweeps?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    finally:
        process.kill()
        process.wait()


def start_search(folder: Path, *words: str) -> subprocess.Popen:
    unwanted = {"MLFLOW_TRACKING_URI"}
    return subprocess.Popen(
        [sys.executable, "-m", "msad", *words],
        cwd=folder,
        env={**{name: value for name, value in os.environ.items() if name not in unwanted}, **KEYS},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_sweep_with_its_checkpoints_in_s3_is_killed_and_resumed(s3, demo, tmp_path, monkeypatch):
    """SIGKILL of all of its processes in mid-trial: Ray Train's next attempt goes on from the checkpoint in S3."""
    from msad.cluster.workers.object_store import open_storage

    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    words = ["search", "--dataset", str(demo), "--categories", "brick", "--architectures", "baseline", "--trials", "1"]
    words += ["--epochs", "60", "--set", "evaluate_every=1", "--pruner", "none", "--executor", "train", *SMALL]
    first = start_search(tmp_path, *words, "--name", "first", "--worker-storage", s3)
    progress = tmp_path / "sweeps" / "first" / "jobs" / "brick-baseline-0000" / "progress.jsonl"
    deadline = time.monotonic() + 900
    while not progress.exists() or progress.read_text().count("\n{") < 3:
        if first.poll() is not None or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    if first.poll() is None:
        os.killpg(first.pid, signal.SIGKILL)
    assert progress.exists(), first.communicate()[0]
    first.wait()
    before = progress.read_text().count("\n{")
    fs, folder = open_storage(below(s3, "first", "train", "brick-baseline-0000"))
    assert fs.get_file_info(folder).type.name == "Directory", "no checkpoint in S3"

    second = start_search(tmp_path, "search", "--resume", "first")
    output, _ = second.communicate(timeout=1500)
    assert second.returncode == 0, output
    lines = [json.loads(line)["epoch"] for line in progress.read_text().splitlines() if line]
    assert sorted(set(lines)) == list(range(1, 61)), "an epoch is missing"
    assert lines.count(1) == 1, "it began anew instead of going on from its checkpoint"
    assert before >= 3
    final = tmp_path / "sweeps" / "first" / "jobs" / "brick-baseline-final"
    assert (final / "test.json").exists() and (final / "bundle" / "model.safetensors").exists()
    assert (
        not fs.get_file_info(folder).is_file
        and "secret-of-the-store" not in (tmp_path / "sweeps" / "first" / "sweep.yaml").read_text()
    )
