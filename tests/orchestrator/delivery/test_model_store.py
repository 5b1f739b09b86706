"""A bundle's way into MLflow and back, on a real SQLite store."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from orchestrator.bundles import Bundle
from orchestrator.delivery.model_store import deliver_files, pull
from orchestrator.errors import BundleError, ConfigError, TrackingError


@pytest.fixture(scope="module")
def logged(log):
    return log("brick", 0.7)


def test_delivered_twice_leaves_one_logged_model_and_one_version(client, experiment, log):
    run_id, record = log("bolt", 0.7)
    deliver_files(client, run_id, record)
    models = client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'")
    assert len(models) == 1 and str(models[0].status).endswith("READY")
    assert models[0].params == {"learning_rate": "0.001"}
    assert [(metric.key, metric.value) for metric in models[0].metrics] == [("validation_score", 0.7)]
    versions = client.search_model_versions("name = 'msad-bolt'")
    assert [(version.run_id, version.source) for version in versions] == [(run_id, models[0].artifact_location)]
    assert [item.path for item in client.list_artifacts(run_id, "pictures")] == ["pictures/training.png"]


def test_delivered_again_uploads_the_new_report_but_not_the_bundle_that_is_there(client, log, monkeypatch):
    run_id, record = log("nut", 0.7)
    record.directory.write("selection", {"image_auroc": {"spearman": 0.5}})
    uploaded = []
    real = client.log_artifacts
    monkeypatch.setattr(client, "log_artifacts", lambda *words: uploaded.append(words[-1]) or real(*words))
    deliver_files(client, run_id, record)
    assert uploaded == ["pictures"]
    assert [item.path for item in client.list_artifacts(run_id)] == ["bundle", "pictures", "selection.json"]


def test_tables_of_the_test_are_uploaded_under_the_names_that_reports_read(client, log):
    run_id, record = log("washer", 0.7, register=False)
    for name in ("scores", "per_defect_type"):
        (record.directory.path / f"test_{name}.csv").write_text(name)
    deliver_files(client, run_id, record)
    assert [item.path for item in client.list_artifacts(run_id, "test")] == [
        "test/per_defect_type.csv",
        "test/scores.csv",
    ]
    assert Path(client.download_artifacts(run_id, "test/scores.csv")).read_text() == "scores"


def test_logged_model_interrupted_while_it_was_made_is_made_anew(client, experiment, log):
    run_id, record = log("interrupted", 0.5, register=False)
    [model] = client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'")
    client.delete_logged_model(model.model_id)
    client.create_logged_model(experiment, name="model", source_run_id=run_id)  # a kill came before its files
    deliver_files(client, run_id, record)
    models = client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'")
    assert sum(str(model.status).endswith("READY") for model in models) == 1


def test_run_without_a_category_to_register_for_is_not_registered(client, log):
    run_id, _ = log("screw", 0.7, register=False)
    assert not client.search_registered_models("name = 'msad-screw'")
    assert [item.path for item in client.list_artifacts(run_id)] == ["bundle", "pictures"]


@pytest.mark.parametrize("by_alias", [False, True])
def test_pulled_bundle_predicts_as_the_one_that_was_logged(logged, uri, bundle, tmp_path, by_alias):
    run_id, _ = logged
    target = tmp_path / "models" / "brick"
    assert pull("brick@champion" if by_alias else run_id, target, uri) == target
    pulled = Bundle.load(target)
    image = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)
    assert pulled.predict(image).score == bundle.predict(image).score
    assert pulled.provenance["run_id"] == run_id
    assert [path.name for path in target.parent.iterdir()] == ["brick"]  # no temporary folder is left


def test_bundle_loads_straight_from_a_run_id(logged, uri, bundle):
    assert Bundle.load(logged[0], tracking_uri=uri).threshold == bundle.threshold


def test_pull_into_an_empty_folder_fills_it_and_into_a_full_one_is_refused(logged, uri, tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    pull(logged[0], target, uri)
    before = sorted(path.name for path in target.iterdir())
    with pytest.raises(ConfigError, match="not an empty folder") as error:
        pull(logged[0], target, uri)
    assert str(target) in str(error.value)
    assert sorted(path.name for path in target.iterdir()) == before == [
        "MODEL_CARD.md", "bundle.json", "model.safetensors", "scorer.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["MODEL_CARD.md", "bundle.json", "model.safetensors", "scorer.safetensors"])
def test_bundle_changed_in_the_store_is_refused_and_leaves_nothing(client, log, uri, tmp_path, name):
    run_id, _ = log("tampered", 0.5, register=False)
    stored = Path(client.get_run(run_id).info.artifact_uri.removeprefix("file://")) / "bundle" / name
    if name == "bundle.json":
        values = json.loads(stored.read_text())
        values["threshold"] += 1000.0  # nothing would be anomalous any more
        stored.write_text(json.dumps(values))
    else:
        content = bytearray(stored.read_bytes())
        content[-1] ^= 1
        stored.write_bytes(content)
    with pytest.raises(BundleError, match=name):
        pull(run_id, tmp_path / "model", uri)
    assert not list(tmp_path.iterdir())


def test_run_without_a_model_is_refused_with_its_state(client, experiment, uri, tmp_path):
    tags = {"msad.status": "failed", "msad.reason": "the loss is nan in epoch 2"}
    run_id = client.create_run(experiment, tags=tags, run_name="brick/baseline 0003").info.run_id
    with pytest.raises(TrackingError, match=r"no model: it is failed \(the loss is nan in epoch 2\).*msad compare"):
        pull(run_id, tmp_path / "model", uri)


@pytest.mark.parametrize("run_id", ["0" * 32, "no such run", "../x"])
def test_unknown_run_is_refused_naming_the_store(client, uri, tmp_path, run_id):
    with pytest.raises(TrackingError, match="msad compare") as error:
        pull(run_id, tmp_path / "model", uri)
    assert run_id in str(error.value) and uri in str(error.value)


def test_unknown_category_is_refused_with_those_that_are_registered(logged, uri, tmp_path):
    with pytest.raises(TrackingError, match=r"no registered model 'brik@champion'; known are .*brick@champion"):
        pull("brik@champion", tmp_path / "model", uri)
