"""A winner that others have overtaken is kept beside the new one; the same one stays where it is."""

from __future__ import annotations

import dataclasses

import pytest

from msad.cluster.earlier_winner import set_earlier_winner_aside
from msad.cluster.workers.task import Task
from msad.training.job_config import JobConfig
from msad.workspace import JobDirectory


@pytest.mark.parametrize("ended", [True, False])
def test_winner_of_fewer_trials_makes_way_for_another(tmp_path, bundle, ended):
    def task(**changes):
        directory = JobDirectory(tmp_path / "jobs" / "c-final")
        job = dataclasses.replace(bundle.job, **changes)
        return Task(job_id="c-final", job=job, dataset=tmp_path, cache=tmp_path, directory=directory)

    first = task()
    if ended:
        bundle.save(first.directory.bundle)
    else:
        first.directory.write("job", first.job.to_dict())
    set_earlier_winner_aside(first, str(tmp_path / "train"))
    written = dataclasses.replace(first, job=JobConfig.from_dict({**first.job.to_dict(), "tiling": {"tile": 0}}))
    set_earlier_winner_aside(written, str(tmp_path / "train"))  # the same, with a default written out
    assert first.directory.path.exists()
    if not ended:
        first.directory.write("job", {**first.job.to_dict(), "of_another_version": 1})
        set_earlier_winner_aside(task(learning_rate=0.5), str(tmp_path / "train"))
        assert first.directory.path.exists()
        first.directory.write("job", first.job.to_dict())
    for number in (1, 2):
        set_earlier_winner_aside(task(learning_rate=0.5 / number), str(tmp_path / "train"))
        assert not first.directory.path.exists() and (tmp_path / "jobs" / f"c-final.before{number}").exists()
        first.directory.write("job", first.job.to_dict())
