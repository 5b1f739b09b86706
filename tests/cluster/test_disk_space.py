"""How much a node's cache will take is known before, to the byte where it counts, and asked for."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch

from msad.cluster.disk_space import cache_needs, disk_space_problem
from msad.cluster.nodes import node_problems
from msad.cluster.workers.job_worker import load_training_data
from msad.models.registry import build
from msad.search.config import make_config
from msad.search.preflight import prepare
from msad.training.batches import FeatureBatches


@pytest.fixture
def plan(demo, category, own_cache, tmp_path):
    def plan(*architectures, final_seeds=1):
        settings = {"architectures": architectures, "image_size": 32, "storage": tmp_path, "final_seeds": final_seeds}
        return prepare(make_config({"name": "a", "dataset": demo, "categories": [category], **settings}), own_cache)

    return plan


def disk_with(monkeypatch, free):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage(2**50, 2**50 - free, free))


def test_what_a_frozen_encoder_keeps_is_what_was_asked_for(plan, demo, category, tmp_path):
    found = plan("feature_pyramid")
    (images, _), (features, size) = cache_needs(found, {category}, 1)
    data = load_training_data(found.studies[0].job, demo, tmp_path / "cache")
    arrays = {}

    def cached(name, make):
        arrays[data.identity.key(name)] = data.cached(name, make)
        return arrays[data.identity.key(name)]

    model = build("feature_pyramid")
    FeatureBatches(found.studies[0].job, type(data)(**{**vars(data), "cached": cached}), model, torch.device("cpu"))
    assert features[0] in arrays and sum(array.nbytes for array in arrays[features[0]].values()) == size
    assert (
        disk_space_problem(cache_needs(found, {category}, 1), tmp_path / "cache") is None
    )  # whatever is free: it is there
    assert images == (data.identity.key("synthetic"),)


def test_room_is_asked_for_each_seed_and_for_none_of_what_is_finished(plan, category):
    one, three = (cache_needs(plan("feature_pyramid", "multiscale", final_seeds=n), {category}, n) for n in (1, 3))
    assert len(three) == 3 * len(one) == 6
    assert cache_needs(plan("multiscale"), set(), 1) == []


def test_too_little_room_is_told_with_both_amounts(tmp_path, monkeypatch):
    kept, cache = [(("a", "b"), 3 * 10**9), (("c",), 10**8)], tmp_path / "not" / "made yet"
    disk_with(monkeypatch, 3_100_000_000)
    assert disk_space_problem(kept, cache) is None
    disk_with(monkeypatch, 1_500_000_000)
    assert "1.5 GB free" in disk_space_problem(kept, cache) and "3.1 GB" in disk_space_problem(kept, cache)
    assert not cache.exists()


def test_node_without_room_says_so_of_its_own_cache(tmp_path, monkeypatch, demo):
    (tmp_path / "nodes").mkdir()
    (tmp_path / "nodes" / "token").write_text("t")
    monkeypatch.setenv("MSAD_CACHE", str(tmp_path / "of the node"))
    disk_with(monkeypatch, 10**9)
    kept = [(("a",), 2 * 10**9)]
    problems = node_problems(
        str(tmp_path / "nodes"), "t", str(demo), "1", "other code", kept, tmp_path / "the driver's"
    )
    assert str(tmp_path / "of the node") in problems[-1] and "1.0 GB free" in problems[-1]
    monkeypatch.delenv("MSAD_CACHE")
    problems = node_problems(
        str(tmp_path / "nodes"), "t", str(demo), "1", "other code", kept, tmp_path / "the driver's"
    )
    assert str(tmp_path / "the driver's") in problems[-1]
