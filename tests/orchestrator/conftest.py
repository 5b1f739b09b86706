"""An untrained bundle with real statistics, an empty MLflow store, a real browser: small, quick, all of it genuine."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from data_io.cache import load_images
from data_io.splits import split_good_images
from models.registry import build
from models.scoring import Scoring, fit_scorer, threshold
from orchestrator.bundles import Bundle, to_tensor
from orchestrator.job_config import JobConfig
from orchestrator.model_store import deliver_files
from orchestrator.tracking import RunRecord, connect, open_experiment
from orchestrator.workspace import JobDirectory


@pytest.fixture(scope="session")
def category(demo):
    """A category of the demo dataset."""
    return sorted(path.name for path in demo.iterdir() if path.is_dir())[0]


@pytest.fixture(scope="session")
def make_bundle(demo, category):
    """Return a function that builds a bundle for the demo's category; `scoring` replaces fields of the scoring."""

    def make(**scoring):
        torch.manual_seed(0)
        parameters = {"base_width": 8, "depth": 2}
        job = JobConfig(category=category, architecture="multiscale", image_size=32, model=parameters)
        model = build(job.architecture, **parameters).eval()
        images = load_images(split_good_images(demo, category, seed=0).train_paths, job.image_size)
        maps = model.anomaly_maps(to_tensor(images))
        values = {"weights": dict.fromkeys(maps, 1.0), "smoothing": 0.5, "calibration": "position"} | scoring
        scorer = fit_scorer(Scoring(**values), maps)
        good_scores = scorer(maps)[1].numpy()
        provenance = {"run_id": "0123abcd", "validation": {"score": 0.75, "pixel_ap": float("nan")}}
        return Bundle(model, scorer, threshold(good_scores, 0.2), job, provenance)

    return make


@pytest.fixture(scope="session")
def bundle(make_bundle):
    """A bundle that tests only read."""
    return make_bundle()


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    """The address of a SQLite store of a test file's own."""
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture(scope="module")
def client(uri):
    """A client of the store at `uri`."""
    return connect(uri)


@pytest.fixture(scope="module")
def experiment(client, uri):
    """The ID of an experiment in the store at `uri`."""
    return open_experiment(client, "first", uri, Path("first"))


@pytest.fixture(scope="module")
def log(client, experiment, bundle, tmp_path_factory):
    """Return a function that delivers a run with a bundle and returns its run ID and record."""

    def log(category, score, fingerprint="f1", register=True):
        folder = JobDirectory(tmp_path_factory.mktemp("job"))
        bundle.save(folder.bundle)
        (folder.path / "pictures").mkdir()
        (folder.path / "pictures" / "training.png").write_bytes(b"picture")
        tags = {"msad.category": category, "msad.data_fingerprint": fingerprint, "msad.trials": "3"}
        run_id = client.create_run(experiment, run_name=f"{category}/multiscale", tags=tags).info.run_id
        client.log_metric(run_id, "validation_score", score)
        record = RunRecord(
            record_id=f"{category}-multiscale",
            kind="study",
            title=f"{category}/multiscale",
            status="complete",
            directory=folder,
            params={"learning_rate": 0.001},
            tags=tags,
            metrics={"validation_score": score},
            register_as=category if register else None,
        )
        deliver_files(client, run_id, record)
        return run_id, record

    return log


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Debian's chromium without a window, by selenium; what uses it is skipped where there is none."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium and chromedriver: install them (Debian: apt install chromium chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    switches = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
    switches += "disable-component-update disable-sync disable-dev-shm-usage"
    for switch in (*switches.split(), f"user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(f"--{switch}")
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()
