"""Where MLflow keeps everything: which store, whether it answers, and the experiment of a sweep in it."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.addresses import connecting, hide_secrets, public
from orchestrator.errors import ConfigError, TrackingError, first_line
from orchestrator.ui.pages import VIEW_TAG, saved_view

if TYPE_CHECKING:
    from mlflow import MlflowClient

# MLflow's default of 7 retries keeps a command hanging for minutes when a server is down; the tracker retries itself.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
# Its progress bars for three files would stand between the sweep's own lines.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# Two lines for every run that ends, on the standard output, where the results go.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")


def default_tracking_uri() -> str:
    """Return $MLFLOW_TRACKING_URI without a password, else the SQLite file `mlflow.db` in the working directory."""
    return public(os.environ.get("MLFLOW_TRACKING_URI", "")) or f"sqlite:///{Path.cwd() / 'mlflow.db'}"


def connect(tracking_uri: str | None = None) -> MlflowClient:
    """Return a client of a store that answers.

    Raises
    ------
    TrackingError
        The server cannot be reached, or the store cannot be opened; the text names the address.
    """
    from mlflow import MlflowClient

    uri = public(tracking_uri or default_tracking_uri())
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    try:
        client = MlflowClient(tracking_uri=connecting(uri))
        client.search_experiments(max_results=1)
    except Exception as error:
        raise TrackingError(
            f"the tracking server {uri} cannot be reached: {hide_secrets(first_line(error))}\n"
            "Start it, or name another with --tracking-uri (or the variable MLFLOW_TRACKING_URI)."
        ) from error
    return client


def open_experiment(client: MlflowClient, sweep: str, tracking_uri: str, workspace: Path) -> str:
    """Return the ID of a sweep's experiment, made where there is none.

    Raises
    ------
    ConfigError
        The experiment exists and belongs to another folder, so that two sweeps would be mixed.
    """
    experiment = client.get_experiment_by_name(sweep)
    if experiment is not None and experiment.lifecycle_stage == "deleted":
        raise ConfigError(
            f"the MLflow experiment {sweep!r} was deleted but still holds its name: choose another --name, "
            f"or remove it for good with `mlflow gc --experiment-ids {experiment.experiment_id}`"
        )
    if experiment is not None:
        if experiment.tags.get("msad.workspace") != str(workspace):
            raise ConfigError(
                f"{tracking_uri} has an experiment {sweep!r} already, which is not of the sweep in {workspace}: "
                "choose another --name"
            )
        if VIEW_TAG not in experiment.tags:  # else a person may have changed it
            client.set_experiment_tag(experiment.experiment_id, VIEW_TAG, saved_view())
        return experiment.experiment_id
    # The kind makes a UI that asks for it open on runs and models rather than on its pages for language models.
    kind = "custom_model_development"
    tags = {"msad.sweep": sweep, "msad.workspace": str(workspace), "mlflow.experimentKind": kind}
    tags[VIEW_TAG] = saved_view()
    # A local store keeps its artifacts beside the database; a server decides for itself.
    prefix = "sqlite:///"
    location = None
    if tracking_uri.startswith(prefix):
        location = str(Path(tracking_uri.removeprefix(prefix)).resolve().parent / "mlartifacts" / sweep)
    return client.create_experiment(sweep, artifact_location=location, tags=tags)
