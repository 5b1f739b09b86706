"""What `msad compare` says and draws of trials by worth and time."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from mlflow import MlflowClient
from PIL import Image

from msad.terminal.speed_text import format_speed
from msad.tracking.speed import COLUMNS, speed_table


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A sweep of two trials and one of another category."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    client, runs = MlflowClient(tracking_uri=uri), []
    first = client.create_experiment("first", tags={"msad.sweep": "first"})
    for category, score, latency in (("bottle", 0.9, 40.0), ("bottle", 0.85, 12.0), ("tile", 0.7, 60.0)):
        tags = {"msad.category": category, "msad.architecture": "baseline", "msad.study": f"{category}/baseline"}
        client.create_run(first, tags=tags | {"msad.kind": "study"})
        tags |= {"msad.kind": "trial", "msad.status": "complete", "msad.trial_id": f"{category}-{len(runs):04d}"}
        runs.append(client.create_run(first, tags=tags).info.run_id)
        client.log_metric(runs[-1], "validation_score", score)
        client.log_metric(runs[-1], "latency_ms", latency)
    return uri, runs


def test_words_name_the_best_and_where_there_is_none_the_quickest(store):
    uri, runs = store
    assert format_speed(speed_table("first", uri, 20.0)).splitlines() == [
        "Best by validation score within 20 ms per image:",
        f"bottle: baseline trial 0001, 0.850, 12.0 ms: msad pull {runs[1]} --to DIR",
        "tile: none; the quickest is baseline trial 0002, 0.700, 60.0 ms",
    ]
    assert format_speed(speed_table("first", uri)).startswith("Best by validation score:\nbottle: baseline trial 0000")
    assert format_speed(pd.DataFrame(columns=list(COLUMNS))) == "no trial has both a validation score and a latency"


def test_compare_names_the_best_within_a_budget_and_draws_all(store, msad, tmp_path):
    uri, runs = store
    words = "compare", "first", "--tracking-uri", uri
    code, out, _ = msad(*words, "--speed", "speed.png", "--latency-budget", "50")
    assert code == 0 and f"msad pull {runs[0]}" in out and "within 50 ms" in out
    with Image.open(tmp_path / "speed.png") as picture:
        assert picture.width > 500
    code, out, err = msad(*words, "--latency-budget", "50", "--json", "-")
    assert code == 0 and json.loads(out) and "within 50 ms" in err


def test_compare_refuses_a_budget_of_no_time(store, refused):
    assert "--latency-budget" in refused("compare", "first", "--tracking-uri", store[0], "--latency-budget", "0")
