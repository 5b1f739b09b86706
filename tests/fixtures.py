"""An untrained bundle with real statistics, MLflow stores, a real browser, the built wheel: all of it genuine."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def category(demo):
    """A category of the demo dataset."""
    return sorted(path.name for path in demo.iterdir() if path.is_dir())[0]


@pytest.fixture(scope="session")
def with_known(demo, category, tmp_path_factory):
    """The demo's category with two of its test images of each type of defect as known defects instead; read only."""
    root = tmp_path_factory.mktemp("known")
    shutil.copytree(demo / category, root / category)
    for folder in sorted((root / category / "test").iterdir()):
        for image in sorted(folder.iterdir())[:2] if folder.name != "good" else ():
            for place, target in (
                (image, root / category / "validation" / folder.name),
                (
                    root / category / "ground_truth" / folder.name / f"{image.stem}_mask.png",
                    root / category / "validation" / "ground_truth" / folder.name,
                ),
            ):
                target.mkdir(parents=True, exist_ok=True)
                place.rename(target / place.name)
    return root


@pytest.fixture(scope="session")
def make_bundle(demo, category):
    """Return a function that builds a bundle for the demo's category; `scoring` replaces fields of the scoring."""
    import torch

    from msad.bundle.bundles import Bundle
    from msad.bundle.images import to_tensor
    from msad.data_io.cache import load_images
    from msad.data_io.splits import split_good_images
    from msad.models.false_regions import pixel_threshold
    from msad.models.registry import build
    from msad.models.scorer import Scoring, fit_scorer
    from msad.models.thresholds import threshold
    from msad.training.job_config import JobConfig

    def make(image_size=32, **scoring):
        torch.manual_seed(0)
        parameters = {"base_width": 8, "depth": 2}
        job = JobConfig(category=category, architecture="multiscale", image_size=image_size, model=parameters)
        model = build(job.architecture, **parameters).eval()
        images = load_images(split_good_images(demo, category, seed=0).train_paths, job.image_size)
        maps = model.anomaly_maps(to_tensor(images))
        values = {"weights": dict.fromkeys(maps, 1.0), "smoothing": 0.5, "calibration": "position"} | scoring
        scorer = fit_scorer(Scoring(**values), maps)
        good_maps, good_scores = (part.numpy() for part in scorer(maps))
        provenance = {"run_id": "0123abcd", "validation": {"score": 0.75, "pixel_ap": float("nan")}}
        pixel_cut, _ = pixel_threshold(good_maps[:, 0], 0.5)
        return Bundle(model, scorer, threshold(good_scores, 0.2), job, provenance, pixel_cut)

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
    from msad.tracking.store import connect  # MLflow is not on every machine that trains

    return connect(uri, create=True)


@pytest.fixture(scope="module")
def experiment(client, uri):
    """The ID of an experiment in the store at `uri`."""
    from msad.tracking.store import open_experiment

    return open_experiment(client, "first", uri, "a")


@pytest.fixture(scope="module")
def log(client, experiment, bundle, tmp_path_factory):
    """Return a function that delivers a run with a bundle and returns its run ID and record."""
    from msad.bundle.bundles import Bundle
    from msad.tracking.model_store import deliver_files
    from msad.tracking.run_record import RunRecord
    from msad.workspace import JobDirectory

    def log(category, score, identity="i1", register=True, objective="validation_score"):
        folder = JobDirectory(tmp_path_factory.mktemp("job"))
        Bundle(
            bundle.model,
            bundle.scorer,
            bundle.threshold,
            dataclasses.replace(bundle.job, objective=objective),
            bundle.provenance,
            bundle.pixel_threshold,
        ).save(folder.bundle)
        (folder.path / "pictures").mkdir()
        (folder.path / "pictures" / "training.png").write_bytes(b"picture")
        tags = {"msad.category": category, "msad.identity": identity, "msad.trials": "3"}
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
def record_sweep():
    """Return a function that records a sweep in `FOLDER/mlflow.db` as a real one does, from figures it is given.

    `figures[category, architecture]` are a validation score and a test image AUROC, or the reason of a failure. Called
    again it is a resume. It returns the store's address and what `SweepRun.publish` returned.
    """
    import io

    import optuna
    from optuna.distributions import FloatDistribution
    from PIL import Image
    from rich.console import Console

    from msad.names import study_ids
    from msad.report.live import LiveView
    from msad.report.reporter import Reporter
    from msad.report.study_runs import StudyRuns
    from msad.report.sweep_run import SweepRun
    from msad.search.config import make_config
    from msad.search.study import Study
    from msad.tracking.model_store import deliver_files
    from msad.tracking.store import connect, open_experiment
    from msad.tracking.tracker import Tracker
    from msad.workspace import Workspace

    def finished(job, validation, study_id):
        space = {"learning_rate": FloatDistribution(1e-4, 1e-2, log=True)}
        study = Study(job, space, 2, optuna.storages.InMemoryStorage(), "none", id=study_id)
        for value in (validation - 0.1, validation):
            study.tell(study.ask()[0], value=value)
        return study

    def record_sweep(folder, figures, bundle=None):
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        uri, workspace = f"sqlite:///{folder / 'mlflow.db'}", Workspace(folder / "sweeps" / "first")
        categories, architectures = (tuple(dict.fromkeys(names)) for names in zip(*figures, strict=True))
        words = {"categories": categories, "architectures": architectures, "trials": 2, "image_size": 32}
        config = make_config({"name": "first", "dataset": folder, "tracking_uri": uri, **words})
        client = connect(uri, create=True)
        tracker = Tracker(client, open_experiment(client, "first", uri, workspace.claim_id()), print, deliver_files)
        ids = study_ids(map("/".join, figures))
        studies = {
            key: finished(config.job(*key), 0.5 if isinstance(ends, str) else ends[0], ids["/".join(key)])
            for key, ends in figures.items()
        }
        view = LiveView(list(studies.values()), 1, Console(file=io.StringIO()))
        runs = StudyRuns(workspace, tracker, lambda job: {"msad.identity": "i"})
        reporter, report = (
            Reporter(workspace, view, runs),
            SweepRun(config, workspace, tracker, list(studies.values())),
        )
        for study in studies.values():
            runs.catch_up(study)
        report.begin()
        for key, study in studies.items():
            final, ends = workspace.final(study.id), figures[key]
            (final.path / "pictures").mkdir(parents=True, exist_ok=True)
            if isinstance(ends, str):
                final.write("failure", {"reason": ends})
            else:
                (final.path / "failure.json").unlink(missing_ok=True)
                validation, image_auroc = ends
                for epoch in (1, 2):
                    final.append_progress({"epoch": epoch, "train_loss": 1 / epoch, "validation_score": validation})
                final.write("result", {"epoch": 2, "threshold": 0.5, "parameters": 9, "score": validation})
                test = {"image_auroc": image_auroc, "image_prauc": 0.9, "image_prevalence": 0.5, "aupro_30": 0.7}
                counts = {"false_positives": 1, "good_images": 12, "misses": 2, "defective_images": 18}
                final.write("test", {**test, "pixel_auroc": 0.9, **counts})
                Image.new("RGB", (60, 40), (0, 114, 178)).save(final.path / "pictures" / "gallery.png")
                if bundle:
                    bundle.save(final.bundle)
            reporter.finals.ended(study)
        unreported = report.publish(runs, 10)
        tracker.close(10)
        return uri, unreported

    return record_sweep


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


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel, built from a copy: a build leaves files where it is made."""
    from msad.code_version import FOLDERS

    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in FOLDERS:
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    words = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", built, source]
    done = subprocess.run([*map(str, words), "--quiet"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(built.glob("*.whl"))
