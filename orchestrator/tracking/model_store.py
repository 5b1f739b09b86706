"""Bundles in MLflow: a finished run's files and logged model, and the way back by run ID."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msad.addresses import hide_secrets
from msad.bundle import bundle_files
from msad.errors import BundleError, ConfigError, TrackingError
from msad.progress import filling
from msad.tracking.artifacts import artifacts
from msad.tracking.champion import enter, find_run, logged_model, models_of, without_model
from msad.tracking.champion_alias import sought_by
from msad.tracking.run_record import RunRecord
from msad.tracking.store import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

BUNDLE_TAG = "msad.bundle_sha256"  # of a run and of a logged model: the bundle.json that all of it is there of
WEIGHTS_TAG = "msad.weights_sha256"  # of a logged model: the tensors, which never change under a registered version


def deliver_files(client: MlflowClient, run_id: str, record: RunRecord) -> None:
    """Upload a finished record's pictures, tables, bundle and logged model; register the model where it says so.

    What is there already is replaced. Doing it twice leaves one logged model and one model version, and uploads a
    bundle that is there only once; one with other weights becomes another logged model and another version.
    """
    with tempfile.TemporaryDirectory() as staged:
        for name, file in record.files().items():  # a file is uploaded under its own name
            (place := Path(staged) / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(file, place)
        if any(Path(staged).iterdir()):
            client.log_artifacts(run_id, staged)
    bundle = record.directory.bundle
    if record.status != "complete" or not bundle.is_dir():
        return
    bundle_files.amend(bundle, _learnt_since(record, run_id))
    run, digest = client.get_run(run_id), _digest(bundle / "bundle.json")
    if run.data.tags.get(BUNDLE_TAG) != digest:  # the tag comes when all of it is there
        client.log_artifacts(run_id, str(bundle), "bundle")
        client.set_tag(run_id, BUNDLE_TAG, digest)
    model = logged_model(client, run)
    weights = _weights(bundle)
    if model is None or model.tags.get(WEIGHTS_TAG, weights) != weights:
        _log_model(client, run, record, digest)
    elif model.tags.get(BUNDLE_TAG) != digest:  # the same model, of which more is known
        _write_model(client, run_id, model.model_id, record, digest)
    if record.register_as:
        card = (bundle / bundle_files.CARD_FILE).read_text()
        tags = {**record.tags, **record.origin(), **sought_by(bundle_files.description_of(bundle))}
        enter(client, run, record.register_as, card, record.metrics["validation_score"], tags)


def pull(reference: str, to: Path, tracking_uri: str | None = None) -> Path:
    """Fetch the bundle of a run, verified, into a folder that does not exist yet or is empty.

    Parameters
    ----------
    reference
        The run ID of a trial or a study, or `CATEGORY@champion`.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    TrackingError
        The server cannot be reached, or there is no such run, category or model.
    BundleError
        What arrived is not what was logged.
    ConfigError
        The folder holds something already.
    """
    from msad.bundle.bundles import Bundle

    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"{to} exists and is not an empty folder: choose another with --to, or remove it")
    client = connect(tracking_uri)
    run = find_run(client, reference)
    with _fetching(run):
        files = artifacts(client, run)
        sizes = {item.path: item.file_size or 0 for item in files.list_artifacts(run.info.run_id, "bundle")}
    if not sizes:
        raise without_model(run)
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=f".{to.name}.") as folder:
        # A bundle's files by name, and not whatever lies there or whatever a server says that lies there.
        paths = [path for name in bundle_files.FILES if (path := f"bundle/{name}") in sizes]
        fetched = Path(folder) / "bundle"
        fetched.mkdir()
        with filling(fetched, sum(sizes[path] for path in paths), "Pulling"), _fetching(run):
            for path in paths:
                files.download_artifacts(run.info.run_id, path, str(fetched))
        bundle_files.verify(fetched)
        expected = run.data.tags.get("msad.bundle_sha256")
        if expected != _digest(fetched / "bundle.json"):
            raise BundleError(
                f"the bundle of run {run.info.run_id} is not the one that was logged (the checksum of bundle.json "
                "differs from the run's tag msad.bundle_sha256): someone or something has changed it"
            )
        Bundle.load(fetched)  # and it can be read
        try:
            fetched.rename(to)  # onto an empty folder too, in one step: of two pulls at once one wins
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise ConfigError(f"{to} was filled by another command meanwhile, and is left as it is") from None
    return to


@contextlib.contextmanager
def _fetching(run: Run) -> Iterator[None]:
    """Say which run's files MLflow does not give, a path that leaves their folder among the reasons."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        reason = hide_secrets(str(error)).splitlines()[0]
        raise TrackingError(
            f"the bundle of run {run.info.run_id} cannot be fetched: {reason}; look at its artifacts in MLflow"
        ) from error


def _learnt_since(record: RunRecord, run_id: str) -> dict[str, Any]:
    """Return what a bundle's worker could not know: its run, the search it came from, and how other seeds did."""
    known: dict[str, Any] = {
        "run_id": run_id,
        "selection": {"kind": record.kind, "trials": int(record.tags.get("msad.trials", 0))},
    }
    if "final_seeds" in record.metrics:
        tests = {name.removeprefix("test_"): value for name, value in record.metrics.items()}
        spread = {name: value for name, value in tests.items() if name.endswith(("_mean", "_sd"))}
        known["test_over_seeds"] = {"seeds": record.metrics["final_seeds"], **spread}
    return known


def _log_model(client: MlflowClient, run: Run, record: RunRecord, digest: str) -> None:
    """Make a run's logged model, or go on with one that a killed delivery has begun; see `_write_model`.

    It is `READY`, and so the run's model, when all else is there.
    """
    from mlflow.entities import LoggedModelOutput

    params = record.shown_params()
    begun = next((model for model in models_of(client, run)[1] if model.params == params), None)
    model = begun or client.create_logged_model(
        run.info.experiment_id,
        name="model",
        source_run_id=run.info.run_id,
        params=params,
        model_type="anomaly detector",
    )
    _write_model(client, run.info.run_id, model.model_id, record, digest)
    linked = run.outputs.model_outputs if run.outputs else ()
    if model.model_id not in [output.model_id for output in linked]:
        client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, step=0)])  # the link on the run's page
    client.finalize_logged_model(model.model_id, "READY")


def _write_model(client: MlflowClient, run_id: str, model_id: str, record: RunRecord, digest: str) -> None:
    """Upload what `mlflow.pyfunc` loads, the bundle and who reads it, and note the figures and tags beside it."""
    import mlflow.pyfunc

    from msad.tracking.pyfunc_model import input_example, signature

    logging.getLogger("mlflow").setLevel(logging.ERROR)  # it advises on signatures and pip at every model
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        mlflow.pyfunc.save_model(
            path,
            loader_module="msad.tracking.pyfunc_model",
            data_path=str(record.directory.bundle),
            signature=signature(),
            input_example=input_example(),
            pip_requirements=["msad"],  # named here, because MLflow's own search for them takes half a minute
        )
        client.log_model_artifacts(model_id, str(path))
    _log_figures(client, run_id, model_id, record)
    tags = {name: value for name, value in record.tags.items() if name.startswith("msad.")}
    tags |= {**record.origin(), BUNDLE_TAG: digest, WEIGHTS_TAG: _weights(record.directory.bundle)}
    client.set_logged_model_tags(model_id, tags)


def _log_figures(client: MlflowClient, run_id: str, model_id: str, record: RunRecord) -> None:
    """Log with a model the figures that it has not or has otherwise.

    MLflow logs them with the run once more: at the last epoch, where the run has them already.
    """
    from mlflow.entities import Metric

    logged = sorted(client.get_logged_model(model_id).metrics or (), key=lambda metric: metric.timestamp)
    known = {metric.key: metric.value for metric in logged}
    now, last = int(time.time() * 1000), max((int(epoch["epoch"]) for epoch in record.directory.progress()), default=0)
    figures = [
        Metric(name, value, now, last, model_id=model_id)
        for name, value in record.metrics.items()
        if name.startswith(("validation_", "test_")) and known.get(name) != value
    ]
    if figures:
        client.log_batch(run_id, figures)


def _weights(bundle: Path) -> str:
    """Return what tells a bundle's tensors from others, from the checksums of their files."""
    checksums = bundle_files.description_of(bundle)["sha256"]
    return hashlib.sha256("".join(checksums[name] for name in bundle_files.TENSORS).encode()).hexdigest()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
