"""A sweep whose folder, images or database lie elsewhere than when it ran: found or asked for, and nothing is made."""

from __future__ import annotations

import shutil

import pytest

from msad.errors import ConfigError, TrackingError
from msad.report.page import write_report
from msad.search.config import make_config
from msad.sweep import launch
from msad.tracking.artifacts import settle_artifacts
from msad.tracking.compare import open_sweep
from msad.tracking.model_store import pull
from msad.tracking.moved import follow
from msad.tracking.store import connect
from msad.workspace import Workspace

FIGURES = {("brick", "baseline"): (0.7, 0.9)}


@pytest.fixture(scope="module")
def recorded(record_sweep, bundle, tmp_path_factory):
    """A folder with a sweep, its images and its store, as it was written; tests work on copies."""
    folder = tmp_path_factory.mktemp("recorded") / "w"
    folder.mkdir()
    record_sweep(folder, FIGURES, bundle)
    (folder / "images").mkdir()
    uri, images = f"sqlite:///{folder / 'mlflow.db'}", folder / "images"
    config = make_config({"name": "first", "dataset": images, "tracking_uri": uri, "storage": folder / "sweeps"})
    Workspace(folder / "sweeps" / "first").config.write_text(config.to_yaml())
    return folder, config


@pytest.fixture
def unread(monkeypatch):
    """The images are of no interest, and Ray is not to be started."""
    monkeypatch.setattr(launch, "prepare", lambda *_: None)
    monkeypatch.setattr(launch.Resumed, "whole", lambda *_: None)
    monkeypatch.setattr(launch.connection, "connect", lambda *_: pytest.fail("Ray was started"))


@pytest.fixture
def moved(recorded, tmp_path):
    """The folder after `mv w wm`, and the configuration that still says `w`."""
    folder, config = recorded
    shutil.copytree(folder, tmp_path / "wm")
    hidden = folder.rename(folder.with_name("gone"))
    yield tmp_path / "wm", config
    assert not folder.exists(), "the old path was made anew"
    hidden.rename(folder)


def winner(uri):
    client, experiment = open_sweep("first", uri)
    (run,) = client.search_runs([experiment.experiment_id], filter_string="tags.`msad.kind` = 'study'")
    return client, experiment, run


def test_model_and_report_of_a_moved_store_are_read_without_changing_it(moved, tmp_path):
    folder, _ = moved
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    _, _, run = winner(uri)
    before = (folder / "mlflow.db").read_bytes()
    pull(run.info.run_id, tmp_path / "by id", uri)
    pull("brick@champion", tmp_path / "by alias", uri)
    assert "data:image/png" in write_report("first", uri, tmp_path / "report.html").read_text()
    assert (folder / "mlflow.db").read_bytes() == before


def test_files_that_are_gone_are_said_to_be_gone(moved, tmp_path):
    folder, _ = moved
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    shutil.rmtree(folder / "mlartifacts")
    with pytest.raises(TrackingError, match=rf"are not in .*/w/mlartifacts.* nor in {folder}/mlartifacts"):
        pull(winner(uri)[2].info.run_id, tmp_path / "model", uri)


def test_moved_sweep_finds_its_images_and_its_store_beside_it(moved):
    folder, config = moved
    found = follow(config, Workspace(folder / "sweeps" / "first"), None, None)
    assert (found.dataset, found.storage) == (folder / "images", folder / "sweeps")
    assert found.tracking_uri == f"sqlite:///{folder / 'mlflow.db'}"


def test_sweep_that_was_moved_alone_finds_what_stayed(recorded, tmp_path):
    folder, config = recorded
    shutil.copytree(folder / "sweeps", tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "first").rename(tmp_path / "elsewhere" / "renamed")
    found = follow(config, Workspace(tmp_path / "elsewhere" / "renamed"), None, None)
    assert (found.dataset, found.tracking_uri) == (config.dataset, config.tracking_uri)
    assert (found.storage, found.name) == (tmp_path / "elsewhere", "first")


def test_copy_has_its_own_store_and_the_original_is_left_alone(recorded, tmp_path):
    folder, config = recorded
    shutil.copytree(folder, tmp_path / "copy")
    uri = follow(config, Workspace(tmp_path / "copy" / "sweeps" / "first"), None, None).tracking_uri
    assert uri == f"sqlite:///{tmp_path / 'copy' / 'mlflow.db'}"
    client, experiment, run = winner(uri)
    settle_artifacts(uri, experiment)
    places = [
        client.get_experiment(experiment.experiment_id).artifact_location,
        client.get_run(run.info.run_id).info.artifact_uri,
        client.get_model_version_by_alias("msad-brick", "champion").source,
        *(model.artifact_location for model in client.search_logged_models([experiment.experiment_id])),
    ]
    assert len(places) == 4 and all(place.startswith(f"{tmp_path}/copy/mlartifacts/first") for place in places), places
    assert {item.path for item in client.list_artifacts(run.info.run_id)} >= {"bundle", "pictures"}
    assert winner(config.tracking_uri)[1].artifact_location == f"{folder}/mlartifacts/first"


def test_store_that_is_gone_is_asked_for_and_not_made(moved):
    folder, _ = moved
    (folder / "mlflow.db").unlink()
    before = sorted(folder.rglob("*"))
    with pytest.raises(TrackingError, match=r"no such database.*--tracking-uri"):
        launch.resume("first", folder / "sweeps")
    assert sorted(folder.rglob("*")) == before


def test_store_without_the_sweep_is_not_written_to_unless_it_is_named(moved, unread):
    folder, _ = moved
    (folder / "mlflow.db").unlink()
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = connect(uri, create=True)
    with pytest.raises(TrackingError, match=r"nothing of the sweep in .*wm/sweeps/first.*--tracking-uri"):
        launch.resume("first", folder / "sweeps")
    assert not client.get_experiment_by_name("first")


def test_images_that_are_gone_are_asked_for(moved, tmp_path):
    folder, config = moved
    (folder / "images").rmdir()
    workspace = Workspace(folder / "sweeps" / "first")
    with pytest.raises(ConfigError, match=r"w/images: .*--dataset"):
        follow(config, workspace, None, None)
    assert follow(config, workspace, None, tmp_path).dataset == tmp_path


def test_name_of_a_sweep_whose_folder_was_removed_is_refused_before_anything_starts(moved, unread):
    folder, config = moved
    shutil.rmtree(folder / "sweeps" / "first")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    again = config.model_copy(update={"storage": folder / "sweeps", "tracking_uri": uri})
    with pytest.raises(ConfigError, match=r"'first' already.*choose another --name"):
        launch.start(again)
    assert not (folder / "sweeps" / "first").exists()
