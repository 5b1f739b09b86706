"""Bundles in MLflow: a finished run's files and logged model, the registered winner, and the way back by run ID."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import BundleError, ConfigError, TrackingError
from orchestrator.tracking import RunRecord, connect
from orchestrator.workspace import write_atomically

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

ALIAS = "best"
TEST_TABLES = ("scores.csv", "per_defect_type.csv")


def registered_name(category: str) -> str:
    """Return the name under which a category's winners are registered."""
    return f"msad-{category}"


def deliver_files(client: MlflowClient, run_id: str, record: RunRecord) -> None:
    """Upload a finished record's pictures, tables, bundle and logged model; register the model where it says so.

    Doing it twice leaves one logged model and one model version, and uploads a bundle that is there only once.
    """
    pictures = record.directory.path / "pictures"
    if pictures.is_dir():
        client.log_artifacts(run_id, str(pictures), "pictures")
    for name in ("search.json", "selection.json"):
        if (file := record.directory.path / name).is_file():
            client.log_artifact(run_id, str(file))
    _upload_tables(client, run_id, record.directory.path)
    bundle = record.directory.bundle
    if record.status != "complete" or not bundle.is_dir():
        return
    _write_run_id(bundle / "bundle.json", run_id)
    digest = _digest(bundle / "bundle.json")
    if client.get_run(run_id).data.tags.get("msad.bundle_sha256") != digest:  # the tag comes when all of it is there
        client.log_artifacts(run_id, str(bundle), "bundle")
        client.set_tag(run_id, "msad.bundle_sha256", digest)
    model_id = _log_model(client, run_id, record)
    if record.register_as:
        _register(client, run_id, model_id, record)


def pull(reference: str, to: Path, tracking_uri: str | None = None) -> Path:
    """Fetch the bundle of a run, verified, into a folder that does not exist yet or is empty.

    Parameters
    ----------
    reference
        The run ID of a trial or a study, or `CATEGORY@best`.

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
    from orchestrator.bundles import Bundle

    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"{to} exists and is not an empty folder: choose another with --to, or remove it")
    client = connect(tracking_uri)
    run = _resolve(client, reference)
    if not any(item.path == "bundle" for item in client.list_artifacts(run.info.run_id)):
        tags = run.data.tags
        status, reason = tags.get("msad.status", run.info.status), tags.get("msad.reason", "")
        raise TrackingError(
            f"run {run.info.run_id} ({run.info.run_name}) has no model: it is {status}"
            + (f" ({reason})" if reason else "")
            + "; `msad compare` lists the runs that have one"
        )
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=f".{to.name}.") as folder:
        fetched = Path(client.download_artifacts(run.info.run_id, "bundle", folder))
        expected = run.data.tags.get("msad.bundle_sha256")
        if expected != _digest(fetched / "bundle.json"):
            raise BundleError(
                f"the bundle of run {run.info.run_id} is not the one that was logged (the checksum of bundle.json "
                "differs from the run's tag msad.bundle_sha256): someone or something has changed it"
            )
        Bundle.load(fetched)  # verifies every other file against bundle.json
        if to.exists():
            to.rmdir()
        fetched.rename(to)
    return to


def _resolve(client: MlflowClient, reference: str) -> Run:
    from mlflow.exceptions import MlflowException

    if "@" in reference:
        category, _, alias = reference.partition("@")
        try:
            run_id = client.get_model_version_by_alias(registered_name(category), alias).run_id
        except MlflowException:
            names = sorted(model.name for model in client.search_registered_models())
            known = [f"{name.removeprefix('msad-')}@{ALIAS}" for name in names if name.startswith("msad-")]
            listed = ", ".join(known) or "none yet: run `msad search` first"
            raise TrackingError(f"no registered model {reference!r}; known are {listed}") from None
    else:
        run_id = reference
    try:
        return client.get_run(run_id)
    except MlflowException:
        raise TrackingError(
            f"no run {run_id!r} in {client.tracking_uri}: `msad compare` lists the run IDs; "
            "another store is named with --tracking-uri"
        ) from None


def _upload_tables(client: MlflowClient, run_id: str, directory: Path) -> None:
    """Upload `test_NAME.csv` as `test/NAME.csv`."""
    with tempfile.TemporaryDirectory() as folder:
        for name in TEST_TABLES:
            if (table := directory / f"test_{name}").is_file():
                shutil.copyfile(table, Path(folder) / name)
                client.log_artifact(run_id, str(Path(folder) / name), "test")


def _log_model(client: MlflowClient, run_id: str, record: RunRecord) -> str:
    run = client.get_run(run_id)
    found = client.search_logged_models([run.info.experiment_id], filter_string=f"source_run_id = '{run_id}'")
    ready = [model for model in found if str(model.status).endswith("READY")]
    if ready:
        return ready[0].model_id
    import mlflow.pyfunc
    from mlflow.entities import LoggedModelOutput

    logging.getLogger("mlflow").setLevel(logging.ERROR)  # it advises on signatures and pip at every model
    params = {name: str(value) for name, value in record.params.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        mlflow.pyfunc.save_model(
            path,
            loader_module="orchestrator.pyfunc_model",
            data_path=str(record.directory.bundle),
            pip_requirements=["msad"],  # named here, because MLflow's own search for them takes half a minute
        )
        model = client.create_logged_model(
            run.info.experiment_id,
            name="model",
            source_run_id=run_id,
            params=params,
            tags={name: value for name, value in record.tags.items() if name.startswith("msad.")},
            model_type="anomaly detector",
        )
        client.log_model_artifacts(model.model_id, str(path))
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])  # the link on the run's page
    for name, value in run.data.metrics.items():
        if name.startswith(("validation_", "test_")):
            client.log_metric(run_id, name, value, model_id=model.model_id)
    return model.model_id


def _register(client: MlflowClient, run_id: str, model_id: str, record: RunRecord) -> None:
    """Register a study's winner; `CATEGORY@best` moves to it only if its validation score is higher."""
    from mlflow.exceptions import MlflowException

    name = registered_name(record.register_as)
    with contextlib.suppress(MlflowException):  # it exists already
        client.create_registered_model(name, description=f"Defect detectors of the category {record.register_as}.")
    versions = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    version = versions[0] if versions else None
    score = record.metrics["validation_score"]
    tags = {name: value for name, value in record.tags.items() if name.startswith("msad.")}
    if version is None:
        # Not `models:/ID`: a local store would look that up in MLflow's global tracking URI, which need not be its own.
        version = client.create_model_version(
            name,
            source=client.get_logged_model(model_id).artifact_location,
            run_id=run_id,
            model_id=model_id,
            tags={"validation_score": f"{score:.6f}", **tags},
        )
    try:
        holder = client.get_model_version_by_alias(name, ALIAS)
    except MlflowException:
        holder = None
    # Scores compare only on the same good images; a category whose images changed starts anew.
    same_data = holder is not None and holder.tags.get("msad.data_fingerprint") == record.tags["msad.data_fingerprint"]
    if not same_data or score > float(holder.tags.get("validation_score", "-inf")):
        client.set_registered_model_alias(name, ALIAS, version.version)


def _write_run_id(description: Path, run_id: str) -> None:
    """Note in a bundle which run it belongs to: known only now, because workers do not talk to MLflow."""
    values = json.loads(description.read_text())
    if values["provenance"].get("run_id") != run_id:
        values["provenance"]["run_id"] = run_id
        write_atomically(description, json.dumps(values, indent=2).encode())


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
