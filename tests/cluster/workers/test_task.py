"""What a worker is sent comes back from plain values, and a node keeps its own cache."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from msad.cluster.workers.task import Task
from msad.data_io.array_cache import chosen_cache_dir, default_cache_dir
from msad.training.job_config import JobConfig
from msad.workspace import JobDirectory

TASK = Task(
    job_id="a",
    job=JobConfig(category="c", architecture="baseline"),
    dataset=Path("/data"),
    cache=Path("/of/the/driver"),
    directory=JobDirectory(Path("/sweeps/a/jobs/a")),
    identity="0" * 64,
    latency_budget=20.0,
    latency_device="cpu",
)


def test_task_comes_back_from_json():
    for task in (TASK, dataclasses.replace(TASK, cache=None, identity=None)):
        assert Task.from_dict(json.loads(json.dumps(task.to_dict()))) == task


def test_node_with_a_cache_of_its_own_uses_that(monkeypatch, tmp_path):
    monkeypatch.setenv("MSAD_CACHE", str(tmp_path))
    assert TASK.node_cache == tmp_path == chosen_cache_dir()
    monkeypatch.delenv("MSAD_CACHE")
    assert TASK.node_cache == Path("/of/the/driver")
    assert dataclasses.replace(TASK, cache=None).node_cache == default_cache_dir() and chosen_cache_dir() is None


def test_cache_that_is_named_relative_to_a_folder_means_the_same_elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MSAD_CACHE", "here")
    assert chosen_cache_dir() == tmp_path / "here"
