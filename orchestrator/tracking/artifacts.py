"""Where the files of MLflow's runs are, also when a database was moved: it has their places as absolute paths.

`msad` keeps those of a SQLite store in a folder beside the database, and there they are found again: reading looks
there and changes nothing; the resumed sweep, which is about to write more of them, corrects what the database says.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

from msad.errors import TrackingError
from msad.tracking.store import ARTIFACTS, database_file

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, FileInfo, Run
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository


def settle_artifacts(tracking_uri: str, experiment: Experiment) -> None:
    """Note in a database that was moved where the files of an experiment are: beside it, as ever.

    MLflow has no call for it, so this writes into its tables (as MLflow 3.17 has them). Left alone are files that are
    in their old place alone.
    """
    file = database_file(tracking_uri)
    if file is None or not (old := _local(experiment.artifact_location)):
        return
    new = file.resolve().parent / ARTIFACTS / old.name
    if old == new or old.parent.name != ARTIFACTS or (old.is_dir() and not new.is_dir()):
        return
    number, changes = int(experiment.experiment_id), []
    for table, columns, of in (
        ("experiments", ("artifact_location",), " AND experiment_id = :number"),
        ("runs", ("artifact_uri",), " AND experiment_id = :number"),
        ("logged_models", ("artifact_location",), " AND experiment_id = :number"),
        ("model_versions", ("source", "storage_location"), ""),
    ):
        changes += [
            f"UPDATE {table} SET {column} = :new || substr({column}, length(:old) + 1) "
            f"WHERE ({column} = :old OR substr({column}, 1, length(:old) + 1) = :old || '/'){of}"
            for column in columns
        ]
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        for change in changes:
            for scheme in ("", "file://"):
                database.execute(change, {"old": f"{scheme}{old}", "new": f"{scheme}{new}", "number": number})


def artifacts(client: MlflowClient, run: Run) -> MlflowClient | Moved:
    """Return who lists and downloads a run's files: the client, or `Moved` where they were moved with its database.

    Raises
    ------
    TrackingError
        They are on this machine's file system, and are gone.
    """
    old, file = _local(run.info.artifact_uri), database_file(client.tracking_uri)
    if not old or not file or old.is_dir() or ARTIFACTS not in old.parts:
        return client
    below = old.parts[len(old.parts) - 1 - old.parts[::-1].index(ARTIFACTS) :]
    new = file.resolve().parent.joinpath(*below)
    if new.is_dir():
        return Moved(new)
    if "msad.bundle_sha256" in run.data.tags:  # else there may have been none
        raise TrackingError(
            f"the files of run {run.info.run_id} are not in {old}, where MLflow has them, nor in {new}, beside its "
            "database: were they moved or removed?"
        )
    return client


class Moved:
    """Lists and downloads the files of a run from a folder, by the words of MLflow's client."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def list_artifacts(self, _run_id: str, path: str | None = None) -> list[FileInfo]:
        return _repository(self._folder).list_artifacts(path)

    def download_artifacts(self, _run_id: str, path: str, dst_path: str | None = None) -> str:
        place = self._folder / path
        return _repository(place.parent).download_artifacts(place.name, dst_path)


def _repository(folder: Path) -> LocalArtifactRepository:
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    return LocalArtifactRepository(str(folder))


def _local(address: str) -> Path | None:
    """Return the folder that an artifact address names, None where it is in no file system of this machine."""
    if address.startswith("file:"):
        return Path(unquote(urlparse(address).path))
    return Path(address) if address.startswith("/") else None
