"""A job of several products in a worker: a folder like any job's for each product, and how they become winners."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from msad.bundle.bundles import Bundle
from msad.cluster import job
from msad.cluster.workers import job_results
from msad.cluster.workers.final_training import train_winner
from msad.cluster.workers.job_worker import run
from msad.cluster.workers.task import Task
from msad.errors import TooSlow
from msad.training.identity import digest_of, identify
from msad.training.job_config import JobConfig
from msad.workspace import Workspace

BOTH = ("brick", "gear")


@pytest.fixture(scope="module")
def make_task(demo, own_cache, tmp_path_factory):
    def make(**settings):
        small = {"model": {"base_width": 4, "depth": 2}, "image_size": 32, "epochs": 2, "evaluate_every": 1}
        values = {"category": "brick + gear", "architecture": "multiscale", "joint": BOTH, **small}
        workspace = Workspace(tmp_path_factory.mktemp("sweep"))
        return Task(
            job_id="both-0000",
            job=JobConfig(**values),
            dataset=demo,
            cache=own_cache,
            directory=workspace.job("both-0000"),
            provenance={"sweep": "first", "executor": "train"},
            **settings,
        )

    return make


@pytest.fixture(scope="module")
def finished(make_task):
    """A job run to its end, and its reports."""
    task, reports = make_task(), []
    run(task, report=lambda metrics, _state: reports.append(metrics), resume_from=lambda: None)
    return task, reports


def test_every_product_has_a_folder_like_that_of_a_job_of_its_own(finished, demo, own_cache):
    task, reports = finished
    result, progress = task.directory.read("result"), task.directory.progress()
    assert sorted(path.name for path in task.directory.path.iterdir()) == [
        "job.json", "pictures", "products", "progress.jsonl", "result.json",
    ]  # fmt: skip
    parts = [task.of_product(name) for name in BOTH]
    assert all("products" not in metrics for metrics in reports) and len(reports) == 2
    for part in parts:
        folder = part.directory
        assert sorted(path.name for path in folder.path.iterdir()) == [
            "bundle", "job.json", "pictures", "progress.jsonl", "result.json",
        ]  # fmt: skip
        bundle = Bundle.load(folder.bundle, "cpu")
        assert bundle.job == JobConfig.from_dict(folder.read("job")) == part.job
        assert bundle.job.category == part.job.category and bundle.job.joint == BOTH
        expected = identify(demo, part.job.category, seed=0, image_size=32, cache=own_cache)
        assert bundle.provenance["identity"]["digest"] == expected.digest
        assert folder.progress()[-1]["train_loss"] == progress[-1]["train_loss"]
        assert "`brick`, `gear` together" in (folder.bundle / "MODEL_CARD.md").read_text()
    first, second = (part.directory.read("result") for part in parts)
    assert first["threshold"] != second["threshold"]
    assert result["score"] == pytest.approx((first["score"] + second["score"]) / 2)
    assert result["products"] == {"brick": first["score"], "gear": second["score"]}
    scores = [part.directory.progress()[-1]["validation_score"] for part in parts]
    assert reports[-1]["objective"] == progress[-1]["validation_score"] == pytest.approx(sum(scores) / 2)
    weights = [Bundle.load(part.directory.bundle, "cpu").model.state_dict() for part in parts]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_job_of_several_products_sees_all_of_their_images(make_task, demo, own_cache):
    digests = digest_of(identify(demo, name, seed=0, image_size=32, cache=own_cache) for name in BOTH)
    told = []
    for identity in (digests, "other"):
        task = make_task(identity=identity)
        run(task, report=lambda metrics, _state: told.append(metrics), resume_from=lambda: None)
    assert "failure" not in told[1] and "the images of brick + gear are others" in told[-1]["failure"]


def test_product_that_takes_too_long_leaves_no_model_of_any(make_task, monkeypatch):
    asked = []

    def latency(_bundle, budget):
        asked.append(budget)
        if len(asked) == 2:
            raise TooSlow(20.0, 10.0)
        return 5.0

    monkeypatch.setattr(job_results, "latency_within", latency)
    task, told = make_task(), []
    run(task, report=lambda metrics, _state: told.append(metrics), resume_from=lambda: None)
    assert told[-1]["too_slow"] == [20.0, 10.0] and task.directory.read("result") is None
    assert not list(task.directory.path.rglob("bundle"))


@pytest.mark.parametrize("of_trial", [True, False])
def test_product_takes_its_part_of_the_model_over(finished, tmp_path, monkeypatch, of_trial):
    monkeypatch.setattr(job, "train_job", lambda *_words, **_more: pytest.fail("it was trained again"))
    source = finished[0].of_product("gear")
    winner = dataclasses.replace(source, job_id="gear-final", directory=Workspace(tmp_path).job("gear-final"))
    train_winner(winner.to_dict(), str(tmp_path / "train"), source.to_dict(), None, of_trial=of_trial)
    result = winner.directory.read("result")
    assert result["score"] == source.directory.read("result")["score"]
    assert result.get("trial") == ("both-0000" if of_trial else None)
    assert Bundle.load(winner.directory.bundle, "cpu").job.category == "gear"


def test_training_of_all_that_has_failed_is_the_failure_of_each(finished, tmp_path):
    source = finished[0].of_product("gear")
    winner = dataclasses.replace(source, job_id="gear-final", directory=Workspace(tmp_path).job("gear-final"))
    failed = {"reason": "it diverged", "kind": "Diverged"}
    assert train_winner(winner.to_dict(), str(tmp_path), source.to_dict(), failed, of_trial=False) == failed
    assert winner.directory.read("failure") == failed and winner.directory.read("result") is None


def test_damaged_result_of_a_product_is_named(finished):
    task, _ = finished
    workspace, place = Workspace(task.directory.path.parent.parent), task.directory.product(1)
    kept = (place.path / "result.json").read_bytes()
    (place.path / "result.json").write_bytes(kept[:20])
    try:
        with pytest.raises(Exception, match=r"products/1/result\.json"):
            workspace.check_jobs()
    finally:
        (place.path / "result.json").write_bytes(kept)
