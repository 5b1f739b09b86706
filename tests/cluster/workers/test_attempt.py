"""What an earlier attempt at a job has left decides what the next one does."""

from __future__ import annotations

import errno
import faulthandler
import os

import pytest

from msad.cluster.workers.attempt import attempt
from msad.cluster.workers.task import Task
from msad.errors import DiskFull
from msad.training.job_config import JobConfig
from msad.training.worker_group import WorkerGroup
from msad.workspace import JobDirectory


@pytest.fixture
def task(tmp_path) -> Task:
    """A job of two epochs that has been tried before, and its folder."""
    directory = JobDirectory(tmp_path / "job")
    directory.write("job", {})
    for epoch, score in ((1, 0.7), (2, 0.4)):
        directory.append_progress({"epoch": epoch, "validation_score": score, "best_objective": 0.7})
    job = JobConfig(category="brick", architecture="baseline")
    return Task(job_id="a", job=job, dataset=tmp_path, cache=tmp_path, directory=directory, timeout=60)


def again(*_arguments, **_words) -> None:
    pytest.fail("it was tried again")


def test_job_that_was_done_before_anybody_heard_of_it_is_reported_as_it_ended(task):
    task.directory.write("result", {"epoch": 1})
    reports = []
    attempt(again, task, report=lambda metrics, state: reports.append(metrics))
    assert reports == [{"epoch": 2, "validation_score": 0.4, "objective": 0.4, "best_objective": 0.7}]


def test_job_that_was_done_leaves_nothing_of_an_attempt_that_was_killed_at_its_end(task):
    task.directory.write("result", {"epoch": 1})
    before = sorted(path.name for path in task.directory.path.iterdir())
    for name in ("hung.txt", ".result.json.77.partial"):
        (task.directory.path / name).touch()
    attempt(again, task, report=lambda *_words: None)
    assert sorted(path.name for path in task.directory.path.iterdir()) == before


def test_job_whose_last_attempt_hung_fails_with_the_place(task):
    other = '  File "/a/main.py", line 1 in main'
    job = '  File "/a/net.py", line 7 in step\n  File "/b/job_worker.py", line 9 in run'
    thread = "Thread 0x{} (most recent call first):"
    lines = ["Timeout (0:01:00)!", thread.format(1), job, "", thread.format(2), other, ""]
    (task.directory.path / "hung.txt").write_text("\n".join(lines))
    reports = []
    attempt(again, task, report=lambda metrics, state: reports.append(metrics))
    assert reports[-1]["failure"].startswith("it hung in step (net.py:7): no evaluation within 60 minutes")
    assert reports[-1]["objective"] == reports[-1]["best_objective"] == 0  # Tune ends a search at a result without it
    assert task.directory.read("failure")["kind"] == "Timeout"


@pytest.mark.parametrize("first", [True, False])
def test_job_that_was_interrupted_is_tried_anew_and_only_its_first_worker_watched(task, first):
    reports, watched, group = [], [], WorkerGroup(0 if first else 1, 2)

    def run(task: Task, *, report, resume_from, group) -> None:
        watched.append((task.directory.path / "hung.txt").exists())
        report({"epoch": 3}, resume_from)

    attempt(run, task, report=lambda *words: reports.append(words), group=group, resume_from="checkpoint")
    assert reports == [({"epoch": 3}, "checkpoint")] and watched == [first]
    assert not (task.directory.path / "hung.txt").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_job_with_its_last_epoch_behind_it_is_finished_and_reported_by_every_worker(task, rank):
    reports = []

    def finish(task: Task, *, report, group) -> None:
        assert group.rank == rank  # it trains nothing, and so reports nothing

    attempt(finish, task, report=lambda metrics, state: reports.append(metrics), group=WorkerGroup(rank, 2))
    assert reports == [{"epoch": 2, "validation_score": 0.4, "objective": 0.4, "best_objective": 0.7}]


def test_attempt_clears_away_what_a_killed_one_left_half_written_and_its_failure(task):
    folder = task.directory
    (folder.path / ".bundle.0123abcd.unfinished").mkdir()
    (folder.path / ".checkpoint.pt.17.partial").touch()
    folder.write("failure", {"reason": "of an earlier attempt"})
    attempt(lambda *_words, **_more: None, task, report=lambda *_words: None)
    assert sorted(path.name for path in folder.path.iterdir()) == ["job.json", "progress.jsonl"]


@pytest.mark.parametrize("cause", [True, False])
def test_full_disk_is_known_by_its_number_wherever_it_was_met(task, cause):
    def run(*_words, **_more) -> None:
        full = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "/cache/images.npy")
        if cause:
            raise ValueError("an image cannot be kept") from full
        raise full

    with pytest.raises(DiskFull, match=r"/cache/images\.npy: cannot be written: .*free some space"):
        attempt(run, task, report=lambda *_words: None)


def test_words_of_a_full_disk_alone_are_no_full_disk(task):
    def run(*_words, **_more) -> None:
        raise OSError(errno.EACCES, "No space left on device", "ResourceError")

    with pytest.raises(PermissionError):
        attempt(run, task, report=lambda *_words: None)


@pytest.mark.parametrize(("size", "armed"), [(1, False), (2, True)])
def test_report_of_a_group_is_watched_because_it_waits_for_the_others(task, monkeypatch, size, armed):
    timer = []
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda *_words, **_more: timer.append(True))
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", lambda: timer.clear())
    watched = []

    def run(task: Task, *, report, group) -> None:
        report({"epoch": 3}, None)

    attempt(run, task, report=lambda *_words: watched.append(bool(timer)), group=WorkerGroup(0, size))
    assert watched == [armed] and not timer
