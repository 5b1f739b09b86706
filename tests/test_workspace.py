"""A sweep's folder: what is in it is whole, and one process at a time holds it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from msad.errors import ConfigError, ResourceError
from msad.workspace import JobDirectory, Workspace, write_atomically

HOLDER = """
import sys
from pathlib import Path
from msad.workspace import Workspace
with Workspace(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_write_atomically_leaves_new_content_and_no_partial_file(tmp_path):
    file = tmp_path / "sweep.yaml"
    write_atomically(file, b"old")
    write_atomically(file, b"new")
    assert file.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.yaml"]


def test_write_that_fails_keeps_the_old_content(tmp_path, monkeypatch):
    file = tmp_path / "sweep.yaml"
    write_atomically(file, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ResourceError, match=r"sweep\.yaml.*No space left"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.yaml"]


def test_what_a_kill_left_half_written_goes_with_the_next_start(tmp_path):
    workspace = Workspace(tmp_path / "sweep")
    job = workspace.job("a-0000")
    job.bundle.mkdir(parents=True)
    left = [workspace.root / ".sweep.yaml.77.partial", job.path / ".test.json.77.partial"]
    left += [job.bundle / ".bundle.json.77.partial"]
    for path in left:
        path.write_bytes(b"{")
    with workspace.lock():
        assert not any(path.exists() for path in left)
    for path in left[1:]:
        path.write_bytes(b"{")
    job.clear_unfinished()
    assert not any(path.exists() for path in left)


def test_job_directory_reads_back_what_was_written_and_none_otherwise(tmp_path):
    job = JobDirectory(tmp_path / "jobs" / "a-0000")
    assert job.read("result") is None and job.progress() == []
    job.write("result", {"epoch": 3, "score": 0.5})
    assert job.read("result") == {"epoch": 3, "score": 0.5}


def test_progress_after_a_retry_counts_the_later_line_of_an_epoch(tmp_path):
    job = JobDirectory(tmp_path)
    for epoch, loss in ((1, 0.9), (2, 0.8), (3, 0.7), (2, 0.5), (3, 0.4)):
        job.append_progress({"epoch": epoch, "train_loss": loss})
    assert [(line["epoch"], line["train_loss"]) for line in job.progress()] == [(1, 0.9), (2, 0.5), (3, 0.4)]


def test_progress_cut_off_by_a_kill_loses_that_line_alone(tmp_path):
    job = JobDirectory(tmp_path)
    for epoch in (1, 2, 3):
        job.append_progress({"epoch": epoch, "train_loss": 1 / epoch})
    file = tmp_path / "progress.jsonl"
    whole = file.read_bytes()
    last = whole.rindex(b"{")
    for end in range(last + 1, len(whole) - 1):  # wherever the kill came
        file.write_bytes(whole[:end])
        expected = [1, 2] if end < len(whole) - 1 else [1, 2, 3]
        assert [line["epoch"] for line in job.progress()] == expected
        job.append_progress({"epoch": 3, "train_loss": 0.25})
        assert [line["train_loss"] for line in job.progress()] == [1.0, 0.5, 0.25]


def test_lock_held_by_another_process_is_refused_and_goes_with_it(tmp_path):
    workspace = Workspace(tmp_path / "first")
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(workspace.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
        text=True,
    )
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="a sweep named 'first' is running") as error, workspace.lock():
            pass
        assert str(workspace.root) in str(error.value) and "--name" in str(error.value)
    finally:
        other.kill()
        other.communicate()
    with workspace.lock():  # a killed holder leaves no lock behind
        assert (workspace.root / "lock").exists()


def test_lock_of_a_start_that_is_refused_leaves_no_folder_and_what_was_there_stays(tmp_path):
    with pytest.raises(ZeroDivisionError), Workspace(tmp_path / "sweeps" / "first").lock():
        _ = 1 / 0
    assert not list(tmp_path.iterdir())
    (tmp_path / "sweeps" / "second").mkdir(parents=True)
    with pytest.raises(ZeroDivisionError), Workspace(tmp_path / "sweeps" / "first").lock():
        _ = 1 / 0
    assert [path.name for path in (tmp_path / "sweeps").iterdir()] == ["second"]
    workspace = Workspace(tmp_path / "sweeps" / "third")
    with workspace.lock():
        workspace.config.touch()
    assert workspace.config.exists()


def test_lock_below_a_file_is_refused_with_its_path(tmp_path):
    (tmp_path / "sweeps").touch()
    with pytest.raises(ConfigError, match="cannot be made"), Workspace(tmp_path / "sweeps" / "first").lock():
        pass
