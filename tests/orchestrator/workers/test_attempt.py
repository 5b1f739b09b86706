"""What an earlier attempt at a job has left decides what the next one does."""

from __future__ import annotations

import pytest

from orchestrator.job_config import JobConfig
from orchestrator.workers.attempt import attempt
from orchestrator.workers.task import Task
from orchestrator.workspace import JobDirectory


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
    reports, watched = [], []

    def run(task: Task, *, report, resume_from) -> None:
        watched.append((task.directory.path / "hung.txt").exists())
        report({"epoch": 3}, resume_from)

    attempt(run, task, report=lambda *words: reports.append(words), first=first, resume_from="checkpoint")
    assert reports == [({"epoch": 3}, "checkpoint")] and watched == [first]
    assert not (task.directory.path / "hung.txt").exists()
