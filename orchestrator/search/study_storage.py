"""Optuna's storage of a sweep, `optuna.db`: opened with patience, and its errors told in one line.

Another process may hold the file for a while (a backup, a viewer); what it holds for longer, or has damaged, ends the
sweep with the cause, and never in a new, empty database in the place of the one that holds the trials.
"""

from __future__ import annotations

import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna

from msad.errors import DiskFull, MsadError, ResourceError
from msad.sqlite_file import damage, fault, sqlite_error
from msad.workspace import Workspace

LOCK_SECONDS = 60.0


def open_studies(workspace: Workspace, patience: float = LOCK_SECONDS) -> optuna.storages.BaseStorage:
    """Return the storage of a sweep's studies, made where the sweep has no trial yet; waits `patience` seconds for it.

    Raises
    ------
    ResourceError
        It is missing although the sweep has trials, is damaged, or is locked for longer.
    """
    path = database(workspace)
    begun = any((workspace.root / "jobs").glob("*/job.json"))
    if begun and not path.exists():
        raise ResourceError(f"{path}: {_restore('is missing, and with it every trial of this sweep')}")
    if path.exists() and (path.stat().st_size or begun) and (broken := damage(path)):
        raise ResourceError(f"{path}: {_restore(broken)}")
    with studies_told(workspace, patience):
        storage = optuna.storages.RDBStorage(workspace.studies, engine_kwargs={"connect_args": {"timeout": patience}})
        return optuna.storages.get_storage(storage)


def silence() -> None:
    """Keep Optuna's own lines about every trial out of the sweep's."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def database(workspace: Workspace) -> Path:
    """Return the file that `Workspace.studies` is the address of."""
    return Path(workspace.studies.removeprefix("sqlite:///"))


@contextmanager
def studies_told(workspace: Workspace, patience: float = LOCK_SECONDS) -> Iterator[None]:
    """Turn an error of the database into one line with its cause; every other error passes.

    Raises
    ------
    ResourceError
        The database is locked, damaged, or cannot be written; `DiskFull` where there is no space for it.
    """
    try:
        yield
    except Exception as error:  # Ray Tune wraps what comes out of a search, in types of its own
        if isinstance(error, MsadError) or sqlite_error(error) is None:
            raise
        path = database(workspace)
        why = fault(path, error) or f"cannot be used: {sqlite_error(error)}"
        if "locked" in why:
            why += f", for more than {patience:g} seconds"
        if path.is_file() and damage(path):
            raise ResourceError(f"{path}: {_restore(why)}") from error
        again = f"msad search --resume {workspace.root.name} --storage {shlex.quote(str(workspace.root.parent))}"
        full = getattr(sqlite_error(error), "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        raise (DiskFull if full else ResourceError)(
            f"{path}: {why}; what it holds is unharmed, and so are checkpoints and results: "
            f"{'free some space there' if full else 'when that is mended'}, then go on with `{again}`"
        ) from error


def _restore(why: str) -> str:
    return (
        f"{why}: put back a copy of it. Without it the sweep cannot be resumed; what it has finished is in its folders "
        "and in MLflow, and a new search takes another --name"
    )
