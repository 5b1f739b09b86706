"""What comes from others, tried in earnest: it runs nothing, writes nothing outside, and is refused by its name."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import struct
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest

from msad.bundle import bundle_files
from msad.bundle.bundle_files import CARD_FILE, DESCRIPTION_FILE, MODEL_FILE, SCORER_FILE
from msad.bundle.bundles import Bundle
from msad.errors import BundleError, ConfigError, TrackingError
from msad.tracking.model_store import pull


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def touched(tmp_path):
    """A file that a payload would create; it is not there at the test's end."""
    file = tmp_path / "touched"
    yield file
    assert not file.exists(), "a payload ran"


@pytest.fixture
def saved(bundle, tmp_path):
    return bundle.save(tmp_path / "bundle")


def describe(directory: Path, **values) -> None:
    """Change bundle.json, and make its checksums right again: an attacker can do that too."""
    path = directory / DESCRIPTION_FILE
    description = json.loads(path.read_text())
    for name in (MODEL_FILE, SCORER_FILE, CARD_FILE):
        if (directory / name).is_file():
            description["sha256"][name] = hashlib.sha256((directory / name).read_bytes()).hexdigest()
    path.write_text(json.dumps(description | values))


def safetensors_claiming(tensors: dict, data: bytes = b"") -> bytes:
    header = json.dumps(tensors).encode()
    return struct.pack("<Q", len(header)) + header + data


@pytest.mark.parametrize("name", [MODEL_FILE, SCORER_FILE])
@pytest.mark.parametrize("kind", ["pickle", "torch", "vast header", "vast tensor", "overlap", "nested", "empty"])
def test_tensor_file_that_is_none_is_refused_by_name_and_runs_nothing(saved, touched, name, kind):
    vast = {"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
    overlap = {key: {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]} for key in "ab"}
    content = {
        "pickle": pickle.dumps(Touch(touched)),
        "torch": b"PK\x03\x04" + pickle.dumps(Touch(touched)),
        "vast header": struct.pack("<Q", 1 << 60) + b"{}",
        "vast tensor": safetensors_claiming(vast),
        "overlap": safetensors_claiming(overlap, bytes(8)),
        "nested": struct.pack("<Q", 100_000) + b"[" * 100_000,
        "empty": b"",
    }
    (saved / name).write_bytes(content[kind])
    describe(saved)
    with pytest.raises(BundleError, match=rf"{name}: not in the safetensors format .*do not use it"):
        Bundle.load(saved)


def test_description_nested_deep_or_of_gigabytes_is_refused_by_name(saved):
    path = saved / DESCRIPTION_FILE
    for content in (
        b"[" * 1_000_000,
        b'{"format":' * 500_000,
        b'{"format": ' + b"9" * 100_000 + b"}",
        b"\xff\xfe",
        b"1",
    ):
        path.write_bytes(content)
        for read in (Bundle.load, bundle_files.verify, bundle_files.summary):
            with pytest.raises(BundleError, match=rf"{DESCRIPTION_FILE}: "):
                read(saved)
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BundleError, match=rf"{DESCRIPTION_FILE}: 1,099,511,627,776 bytes, more than any bundle"):
        Bundle.load(saved)


def test_tensor_file_of_terabytes_is_refused_without_being_read(saved):
    with (saved / MODEL_FILE).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BundleError, match=rf"{MODEL_FILE}: 1,099,511,627,776 bytes"):
        Bundle.load(saved)


@pytest.mark.parametrize(
    "parameters",
    [
        {"base_width": 4096, "depth": 6},
        {"base_width": 1 << 40},
        {"base_width": 8, "depth": 1 << 40},
        {"base_width": 8, "depth": 10_000},
        {"base_width": 8, "depth": 3},
    ],
    ids=["terabytes", "vast width", "vast depth", "depth", "another depth"],
)
def test_network_larger_than_its_tensors_is_refused_before_it_takes_memory(saved, parameters):
    job = json.loads((saved / DESCRIPTION_FILE).read_text())["job"]
    describe(saved, job=job | {"model": parameters})
    with pytest.raises(BundleError, match=r"bundle: not a readable bundle: "):
        Bundle.load(saved)


def test_image_size_of_a_description_is_bounded(saved):
    job = json.loads((saved / DESCRIPTION_FILE).read_text())["job"]
    describe(saved, job=job | {"image_size": 1 << 30})
    with pytest.raises(BundleError, match="image_size is 1073741824"):
        Bundle.load(saved)


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/passwd", "sub/file", "..", "evil.py"])
def test_description_that_names_other_files_is_refused(saved, tmp_path, name):
    (tmp_path / "outside.txt").write_text("secret")
    checksums = json.loads((saved / DESCRIPTION_FILE).read_text())["sha256"]
    describe(saved, sha256=checksums | {name: hashlib.sha256(b"secret").hexdigest()})
    for read in (Bundle.load, bundle_files.verify):
        with pytest.raises(BundleError, match=r"bundle\.json: names .*no file of a bundle; do not use it"):
            read(saved)


@pytest.mark.parametrize("name", [DESCRIPTION_FILE, MODEL_FILE, SCORER_FILE])
def test_link_out_of_a_bundle_and_pipe_in_it_are_refused(saved, tmp_path, name):
    (saved / name).rename(tmp_path / name)
    (saved / name).symlink_to(tmp_path / name)
    with pytest.raises(BundleError, match=rf"{name}: a link to .*outside of the bundle"):
        Bundle.load(saved)
    (saved / name).unlink()
    os.mkfifo(saved / name)
    with pytest.raises(BundleError, match=rf"{name}: not a regular file"):
        Bundle.load(saved)


def test_architecture_named_in_a_bundle_imports_nothing(saved, touched, tmp_path, monkeypatch):
    (tmp_path / "payload.py").write_text(f"import pathlib\npathlib.Path({str(touched)!r}).touch()\nclass Net: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    job = json.loads((saved / DESCRIPTION_FILE).read_text())["job"]
    describe(saved, job=job | {"architecture": "payload:Net"})
    with pytest.raises(BundleError, match="nobody has allowed this process to import"):
        Bundle.load(saved)


def test_link_and_foreign_file_in_a_runs_artifacts_do_not_come_along(log, client, uri, tmp_path):
    run_id, _ = log("linked", 0.7, register=False)
    artifacts = Path(client.get_run(run_id).info.artifact_uri) / "bundle"
    (artifacts / "evil.py").write_text("print(1)")
    (artifacts / "folder").symlink_to(tmp_path)
    assert sorted(path.name for path in pull(run_id, tmp_path / "first", uri).iterdir()) == sorted(bundle_files.FILES)
    (tmp_path / "secret").write_text("secret of this machine")
    (artifacts / MODEL_FILE).unlink()
    (artifacts / MODEL_FILE).symlink_to(tmp_path / "secret")
    with pytest.raises(TrackingError, match=rf"{run_id} cannot be fetched: .*{MODEL_FILE}"):
        pull(run_id, tmp_path / "second", uri)
    assert not (tmp_path / "second").exists() and not list(tmp_path.glob(".second*"))


class HostileServer(BaseHTTPRequestHandler):
    """Just enough of an MLflow server, with a run whose artifacts have the names that `listing` says."""

    listing: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path = parse_qs(url.query).get("path", [""])[0]
        if url.path.endswith("/runs/get"):
            info = {"run_id": "r", "experiment_id": "0", "artifact_uri": "mlflow-artifacts:/0/r/artifacts"}
            self._answer({"run": {"info": {**info, "status": "FINISHED", "lifecycle_stage": "active"}, "data": {}}})
        elif url.path.endswith(("/artifacts/list", "/mlflow-artifacts/artifacts")):
            names = self.listing if path.endswith(("bundle", DESCRIPTION_FILE)) else ["bundle"]
            if url.path.endswith("/list"):
                names = [f"bundle/{name}" for name in names]
            self._answer({"files": [{"path": name, "is_dir": name == "bundle", "file_size": 4} for name in names]})
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"evil")

    def do_POST(self) -> None:
        self._answer({"experiments": []})

    def log_message(self, *words) -> None:
        pass

    def _answer(self, values: dict) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(values).encode())


@pytest.mark.parametrize(
    "name",
    ["../../../escaped", "..%2f..%2f..%2fescaped", "/{}/escaped", "{}/escaped", "bundle.json/../../../../escaped"],
)
def test_artifact_paths_of_a_hostile_server_write_nothing_outside(tmp_path, name):
    server = ThreadingHTTPServer(("127.0.0.1", 0), HostileServer)
    HostileServer.listing = [name.format(tmp_path), DESCRIPTION_FILE]
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises((BundleError, TrackingError), match="bundle"):
            pull("r" * 32, tmp_path / "models" / "pulled", f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()
    assert sorted(tmp_path.rglob("*")) in (before, [*before, tmp_path / "models"])


def _pull_at(moment, reference, target, uri):
    time.sleep(max(0.0, moment - time.time()))
    try:
        pull(reference, target, uri)
    except ConfigError:
        os._exit(3)


@pytest.fixture(scope="module")
def processes():
    """Starts processes that have everything imported, so that they can be killed in the middle of a pull."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["msad.bundle.bundles", "msad.tracking.model_store", "mlflow.tracking", __name__])
    return context


@pytest.fixture(scope="module")
def two_runs(log):
    return log("one", 0.7, register=False)[0], log("two", 0.7, register=False)[0]


def test_two_pulls_into_one_folder_at_once_leave_one_of_them_whole(two_runs, uri, processes, tmp_path):
    target, moment = tmp_path / "models" / "pulled", time.time() + 2
    both = [processes.Process(target=_pull_at, args=(moment, run, target, uri)) for run in two_runs]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    codes = [process.exitcode for process in both]
    assert sorted(codes) == [0, 3], codes
    assert Bundle.load(target).provenance["run_id"] == two_runs[codes.index(0)]
    bundle_files.verify(target)
    assert [path.name for path in target.parent.iterdir()] == ["pulled"]


@pytest.mark.slow
def test_pull_that_is_killed_leaves_a_whole_bundle_or_none(two_runs, uri, processes, tmp_path):
    target, clock, killed = tmp_path / "pulled", random.Random(0), 0
    for _ in range(5):
        process = processes.Process(target=_pull_at, args=(0, two_runs[0], target, uri))
        process.start()
        time.sleep(clock.uniform(0.3, 1.5))
        process.kill()
        process.join(60)
        killed += process.exitcode == -signal.SIGKILL
        if target.exists():
            bundle_files.verify(target)
            shutil.rmtree(target)
    assert killed
    assert Bundle.load(pull(two_runs[0], target, uri)).provenance["run_id"] == two_runs[0]
