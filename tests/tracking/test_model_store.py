"""A bundle's way into MLflow and back, on a real SQLite store."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from msad.bundle.bundle_files import amend
from msad.bundle.bundles import Bundle
from msad.errors import BundleError, ConfigError, TrackingError
from msad.tracking.loading import load
from msad.tracking.model_store import deliver_files, pull


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


def test_model_that_a_killed_delivery_has_begun_is_finished_and_is_the_only_one(client, experiment, log, monkeypatch):
    monkeypatch.setattr(client, "finalize_logged_model", lambda *_: None)  # as far as that, and the link, it came
    run_id, record = log("hook", 0.7, register=False)
    monkeypatch.undo()
    record.directory.append_progress({"epoch": 4, "validation_score": 0.7})
    deliver_files(client, run_id, record)
    [model] = client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'")
    assert str(model.status).endswith("READY")
    assert [output.model_id for output in client.get_run(run_id).outputs.model_outputs] == [model.model_id]


def test_figures_of_a_model_are_no_step_of_the_runs_curves(client, log, experiment):
    run_id, record = log("bracket", 0.7, register=False)
    record.directory.append_progress({"epoch": 4, "validation_score": 0.7})
    amend(record.directory.bundle, {"test": {"image_auroc": 0.75}})
    deliver_files(client, run_id, dataclasses.replace(record, metrics={**record.metrics, "test_image_auroc": 0.75}))
    assert [metric.step for metric in client.get_metric_history(run_id, "test_image_auroc")] == [4]
    [model] = client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'")
    assert {metric.key: metric.value for metric in model.metrics} == {"validation_score": 0.7, "test_image_auroc": 0.75}


def test_delivered_again_uploads_the_new_report_but_not_the_bundle_that_is_there(client, log, monkeypatch):
    run_id, record = log("nut", 0.7)
    record.directory.write("selection", {"image_auroc": {"spearman": 0.5}})
    uploaded = []
    real = client.log_artifacts

    def upload(run_id, folder, *path):
        uploaded.extend(sorted(file.name for file in Path(folder).iterdir()))
        real(run_id, folder, *path)

    monkeypatch.setattr(client, "log_artifacts", upload)
    deliver_files(client, run_id, record)
    assert uploaded == ["pictures", "selection.json"]
    assert [item.path for item in client.list_artifacts(run_id)] == ["bundle", "pictures", "selection.json"]


def test_more_that_is_known_of_a_model_is_in_the_same_version(client, experiment, log, uri, tmp_path):
    run_id, record = log("screw nut", 0.7)
    amend(record.directory.bundle, {"test": {"image_auroc": 0.75}})
    deliver_files(client, run_id, record)
    [model] = client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'")
    [version] = client.search_model_versions(f"run_id = '{run_id}'")
    assert version.source == model.artifact_location and "0.75" in version.description
    inside = next(Path(model.artifact_location.removeprefix("file://")).rglob("bundle.json"))
    assert json.loads(inside.read_text())["provenance"]["test"] == {"image_auroc": 0.75}
    pull(run_id, tmp_path / "model", uri)


def test_model_that_was_trained_again_is_another_version_and_the_old_one_stays(client, log, make_bundle):
    run_id, record = log("rivet", 0.7)
    [before] = client.search_model_versions(f"run_id = '{run_id}'")
    make_bundle(smoothing=3.0).save(record.directory.bundle)
    for _ in range(2):
        deliver_files(client, run_id, record)
        versions = {one.version: one.source for one in client.search_model_versions(f"run_id = '{run_id}'")}
        assert len(versions) == 2 and len({*versions.values()}) == 2
    assert versions[before.version] == before.source


def test_tables_of_the_test_are_uploaded_under_the_names_that_reports_read(client, log):
    run_id, record = log("washer", 0.7, register=False)
    for name in ("scores", "regions", "per_defect_type"):
        (record.directory.path / f"test_{name}.csv").write_text(name)
    deliver_files(client, run_id, record)
    assert [item.path for item in client.list_artifacts(run_id, "test")] == [
        "test/per_defect_type.csv",
        "test/regions.csv",
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
    assert load(logged[0], tracking_uri=uri).threshold == bundle.threshold


def test_load_path_that_is_not_there_is_not_taken_for_a_run_id(tmp_path):
    for nowhere in (tmp_path / "nowhere", str(tmp_path / "nowhere"), "./nowhere"):
        with pytest.raises(BundleError, match="no such folder; give a bundle's folder, a run ID or CATEGORY@champion"):
            load(nowhere)


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
