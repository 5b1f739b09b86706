"""Where MLflow keeps everything: which store, whether it answers, and the experiment of a sweep in it."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msad import surroundings
from msad.addresses import connecting, public
from msad.errors import ConfigError, TrackingError
from msad.sqlite_file import address_of, damage
from msad.tracking.store_fault import ANOTHER, database_file, not_a_store, why_unusable
from msad.tracking.ui.pages import VIEW_TAG, saved_view

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment
    from mlflow.exceptions import MlflowException

SWEEP_TAG, ID_TAG = "msad.sweep", "msad.sweep_id"
"""Tags of a sweep's experiment: its name as the sweep has it, and its identity, which no other sweep has."""

ARTIFACTS = "mlartifacts"  # the folder beside a database
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # the second for aliases, and for IDs that are none

surroundings.complete()  # MLflow cannot even be imported where there is no home
# MLflow's default of 7 retries keeps a command hanging for minutes when a server is down; the tracker retries itself.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
# Its progress bars for three files would stand between the sweep's own lines.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# Two lines for every run that ends, on the standard output, where the results go.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")


def default_tracking_uri() -> str:
    """Return $MLFLOW_TRACKING_URI without a password, else the SQLite file `mlflow.db` in the working directory."""
    return public(os.environ.get("MLFLOW_TRACKING_URI", "")) or address_of(Path.cwd() / "mlflow.db")


def connect(tracking_uri: str | None = None, *, create: bool = False) -> MlflowClient:
    """Return a client of a store that answers.

    MLflow makes a database that is not there. Only where something is to be written may it: with `create`.

    Raises
    ------
    TrackingError
        The server cannot be reached, or the store is not there or cannot be opened; the text names the address, cause
        and remedy.
    """
    from mlflow import MlflowClient

    uri = public(tracking_uri or default_tracking_uri())
    if why := not_a_store(uri):
        raise TrackingError(why)
    if not create and (path := database_file(uri)) and not path.exists():
        raise TrackingError(
            f"{uri}: no such database: name the store of the search with --tracking-uri (or the variable "
            "MLFLOW_TRACKING_URI), or call this where the search was called"
        )
    if (path := database_file(uri)) and path.is_file() and path.stat().st_size and (broken := damage(path)):
        raise TrackingError(f"{path}: {broken}: put back a copy of it, or {ANOTHER}")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    try:
        if create and path and path.parent.is_dir() and not path.exists():
            _make_whole(path)
        client = MlflowClient(tracking_uri=connecting(uri))
        client.search_experiments(max_results=1)
    except Exception as error:
        raise TrackingError(why_unusable(uri, error)) from error
    return client


def _make_whole(path: Path) -> None:
    """Let MLflow make its database elsewhere, and put it in its place when it is whole.

    That takes many steps and some seconds, and a database whose maker was killed among them could not be used any more.
    """
    from mlflow import MlflowClient

    with tempfile.TemporaryDirectory() as folder:
        MlflowClient(tracking_uri=address_of(made := Path(folder) / path.name)).search_experiments(max_results=1)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            shutil.copyfile(made, beside)
            # An error: another process was first; or links are unknown here, and MLflow makes it in its place.
            with contextlib.suppress(OSError):
                path.hardlink_to(beside)
        finally:
            beside.unlink(missing_ok=True)


def is_absent(error: MlflowException) -> bool:
    """Return whether an error of MLflow says that there is no such thing, rather than that one may not see it."""
    return error.error_code in ABSENT


def identity_of(experiment: Experiment) -> str | None:
    """Return the identity of the sweep whose experiment it is; that of an old sweep is the folder that it lay in."""
    folder = experiment.tags.get("msad.workspace")
    return experiment.tags.get(ID_TAG) or (f"path:{folder}" if folder else None)


def find_experiment(client: MlflowClient, sweep: str, tracking_uri: str, sweep_id: str | None) -> Experiment | None:
    """Return the experiment of a sweep, whatever it is called now; None where the store has none.

    `sweep_id` is `Workspace.sweep_id`, None of a sweep that is about to begin.

    Raises
    ------
    ConfigError
        It was deleted; or it has none, and the name belongs to another experiment or another sweep.
    """
    from mlflow.entities import ViewType

    found = all_pages(client.search_experiments, view_type=ViewType.ALL)
    own = next((one for one in found if sweep_id and identity_of(one) == sweep_id), None)
    taken = next((one for one in found if sweep in (one.name, one.tags.get(SWEEP_TAG))), None)
    if own is None and taken is None:
        return None
    experiment = own or taken
    if experiment.lifecycle_stage == "deleted":
        number = experiment.experiment_id
        raise ConfigError(
            f"the MLflow experiment {experiment.name!r} in {tracking_uri} was deleted but still holds its name: "
            f"restore it with `mlflow experiments restore --experiment-id {number}`, or remove it for good with "
            f"`mlflow gc --experiment-ids {number}`" + ("" if own else ", or choose another --name")
        )
    if own is None:
        raise ConfigError(
            f"{tracking_uri} has an experiment {taken.name!r} already, which is not of this sweep but of an earlier "
            f"one named {sweep!r}, or somebody's own: choose another --name, or remove that experiment for good "
            f"(delete it in the UI, then `mlflow gc --experiment-ids {taken.experiment_id}`)"
        )
    return own


def open_experiment(client: MlflowClient, sweep: str, tracking_uri: str, sweep_id: str) -> str:
    """Return the ID of a sweep's experiment, made where there is none; see `find_experiment` for the errors."""
    experiment = find_experiment(client, sweep, tracking_uri, sweep_id)
    if experiment is not None:
        if VIEW_TAG not in experiment.tags:  # else a person may have changed it
            client.set_experiment_tag(experiment.experiment_id, VIEW_TAG, saved_view())
        return experiment.experiment_id
    # The kind makes a UI that asks for it open on runs and models rather than on its pages for language models.
    tags = {SWEEP_TAG: sweep, ID_TAG: sweep_id, "mlflow.experimentKind": "custom_model_development"}
    tags[VIEW_TAG] = saved_view()
    # A local store keeps its artifacts beside the database; a server decides for itself.
    file = database_file(tracking_uri)
    location = str(file.resolve().parent / ARTIFACTS / sweep) if file else None
    return client.create_experiment(sweep, artifact_location=location, tags=tags)


def all_pages(search: Any, **arguments: Any) -> list[Any]:
    """Return all that a search of MLflow finds, which it gives by pages."""
    found, token = [], None
    while True:
        page = search(**arguments, page_token=token)
        found += page
        token = page.token
        if not token:
            return found
