"""Photographs that are 2.5 times as high as wide, from a search to a file that runs without msad."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

from msad.bundle.bundles import Bundle
from msad.bundle.evaluation import evaluate
from msad.bundle.export import export
from msad.bundle.predict import predict_folder
from msad.cluster.workers.job_worker import load_training_data
from msad.data_io.decode import decode
from msad.search.sweep_plan import read_plan
from msad.training.job_config import JobConfig
from msad.training.loop import fit
from msad.workspace import Workspace
from tests.sweep.test_sweep import msad

SMALL = ["--image-size", "64", "--epochs", "2", "--set", "model/base_width=4", "--set", "model/depth=2"]


@pytest.fixture(scope="module")
def bundle(long, own_cache):
    """A model trained on such photographs."""
    job = JobConfig(
        category="brick", architecture="multiscale", image_size="96x32", epochs=2, model={"base_width": 4, "depth": 2}
    )
    data = load_training_data(job, long, own_cache)
    fitted = fit(job, data, device=torch.device("cpu"), report=lambda *_: None, get_checkpoint=lambda: None)
    cuts = {"threshold": fitted.threshold, "pixel_threshold": fitted.pixel_threshold}
    return Bundle(model=fitted.model, scorer=fitted.scorer, job=job, **cuts)


@pytest.mark.slow  # of sweeps test_sweep.py always runs; how a size is found is in tests/search/test_preflight.py
def test_search_finds_the_size_and_records_it_wherever_a_model_is(long, tmp_path):
    words = ["--dataset", str(long), "--architectures", "multiscale", "--trials", "1", "--name", "tall"]
    done = msad("search", *words, *SMALL, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "brick: images are worked on at 96x32 pixels, height x width" in done.stdout + done.stderr
    plan = read_plan(Workspace(tmp_path / "sweeps" / "tall"))
    assert [study.job.image_size for study in plan.studies] == ["96x32"]
    model = tmp_path / "sweeps" / "tall" / "jobs" / "brick-multiscale-final" / "bundle"
    description = json.loads((model / "bundle.json").read_text())
    assert description["image_size"] == description["job"]["image_size"] == "96x32"
    assert description["provenance"]["identity"]["image_size"] == "96x32"
    assert "resized to 96×32 (height × width) pixels" in (model / "MODEL_CARD.md").read_text()
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tall").experiment_id
    sizes = {run.data.params.get("image_size") for run in client.search_runs([experiment])}
    assert "96x32" in sizes and sizes <= {"96x32", None, "64"}  # 64 is what the sweep was given


def test_test_split_is_measured_on_rectangles(bundle, long, own_cache):
    evaluation = evaluate(bundle, long, "brick", own_cache)
    assert evaluation.images.shape[1:] == (96, 32, 3)
    assert evaluation.maps.shape[1:] == evaluation.masks.shape[1:] == (96, 32)
    assert np.isfinite([evaluation.metrics[name] for name in ("image_auroc", "pixel_auroc", "aupro_30")]).all()


def test_predictions_have_the_photographs_shape(bundle, long, tmp_path):
    images = long / "brick" / "test" / "good"
    result = predict_folder(bundle, [images], tmp_path, maps="npy")
    assert result.scored == len(list(images.iterdir())) and not result.skipped
    assert {Image.open(file).size for file in tmp_path.rglob("*.png")} == {(64, 160)}
    assert {np.load(file).shape for file in tmp_path.rglob("*.npy")} == {(160, 64)}


@pytest.mark.parametrize("name", ["tall.onnx", pytest.param("tall.pt2", marks=pytest.mark.slow)])
def test_exported_file_answers_as_the_model(name, bundle, long, tmp_path):
    images = sorted((long / "brick" / "test").rglob("*.png"))[:3]
    written = export(bundle, tmp_path / name, images)
    assert written.images == 3 and written.map <= 1e-3 * written.range
    if name == "tall.pt2":
        score, _, anomaly_map, _ = torch.export.load(written.path).module()(torch.tensor(decode(images[0])[None]))
        expected = bundle.predict(images[0])
        assert score[0].item() == pytest.approx(expected.score, abs=1e-3)
        assert anomaly_map[0].shape == expected.anomaly_map.shape == (160, 64)
