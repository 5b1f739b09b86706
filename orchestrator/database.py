"""The sweep's own database, Optuna's: an error of it is told as what it is, and ends the sweep."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import optuna

from orchestrator.errors import DiskFull, ResourceError, first_line
from orchestrator.workspace import Workspace


@contextmanager
def database_told(workspace: Workspace) -> Iterator[None]:
    """Turn an error of the database into one that says which file it is about and how to go on.

    Raises
    ------
    DiskFull
        There is no space for it.
    ResourceError
        It cannot be read or written for another reason.
    """
    try:
        yield
    except optuna.exceptions.StorageInternalError as error:
        cause = getattr(error.__cause__, "orig", None) or error.__cause__ or error  # sqlite3's, below SQLAlchemy's
        full = getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        mend = "free some space there" if full else "see to it"
        raise (DiskFull if full else ResourceError)(
            f"{workspace.root / 'optuna.db'}: the sweep's own database cannot be read or written: {first_line(cause)}. "
            f"What it holds is unharmed, and so are checkpoints and results: {mend}, then go on with `msad search "
            f"--resume {workspace.root.name} --storage {workspace.root.parent}`"
        ) from error
