"""Why a tracking store cannot be used, and what to do about it: a server is started, a file is not."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

from msad.addresses import absolute, hide_secrets
from msad.errors import first_line
from msad.sqlite_file import fault, query

ANOTHER = "name another store with --tracking-uri (or the variable MLFLOW_TRACKING_URI)"
_SERVED = re.compile(r"https?://|databricks|uc(:|$)", re.IGNORECASE)
_SQLITE = re.compile(r"sqlite(?:\+\w+)?:///([^?]*)", re.IGNORECASE)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)


def database_file(uri: str) -> Path | None:
    """Return the file of a SQLite store, None for any other."""
    found = _SQLITE.match(absolute(uri))
    return Path(found[1]) if found and found[1].startswith("/") else None


def not_a_store(uri: str) -> str | None:
    """Say why an address is none of a store that msad can use, without asking there; None where it may be one."""
    if re.match(r"sqlite(\+\w+)?:(/{0,2}$|//[^/]|///:memory:)", uri, re.IGNORECASE):
        name = uri.partition(":")[2].strip("/")
        if name in ("", ":memory:"):
            return f"{uri}: a database in memory is gone with the command: give a file, e.g. sqlite:///mlflow.db"
        return f"{uri}: the path of a database comes after three slashes: sqlite:///{name}"
    if _SERVED.match(uri) or (_SCHEME.match(uri) and not uri.lower().startswith("file:")):
        return None
    path = Path(re.sub(r"^file:(//)?", "", uri))
    if path.suffix in (".db", ".sqlite", ".sqlite3") or path.is_file():
        return f"{uri}: a database is named with its kind: --tracking-uri sqlite:///{path}"
    return (
        f"{uri}: MLflow keeps runs in a folder no more (its file store): name a database instead, e.g. "
        f"--tracking-uri sqlite:///{path / 'mlflow.db'}, or a server"
    )


def why_unusable(uri: str, error: BaseException) -> str:
    """Return a message for a store that did not answer: its address, the cause, and what to do."""
    if (path := database_file(uri)) is not None:
        if why := fault(path, error):
            locked = "locked" in why
            do = "wait for that one to end, and try again" if locked else f"put back a copy of it, or {ANOTHER}"
            return f"{path}: {why}: {do}" if path.exists() else f"{path}: {why}: {ANOTHER}"
        if why := _other_schema(path, uri):
            return why
    if isinstance(error, ModuleNotFoundError) or isinstance(error.__cause__, ModuleNotFoundError):
        return f"the tracking store {uri} needs a driver that is not installed here: {first_line(error)}"
    reason = hide_secrets(first_line(error))
    if path is not None:
        return f"{path}: cannot be used as a tracking store: {reason}\n{ANOTHER[0].upper()}{ANOTHER[1:]}."
    return f"the tracking server {uri} cannot be reached: {reason}\nStart it, or {ANOTHER}."


def _other_schema(path: Path, uri: str) -> str | None:
    """Say which MLflow has made a database where it is not this one; by the migrations that this one knows."""
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError
    from mlflow import __version__
    from mlflow.store import db_migrations

    try:
        [(found,)] = query(path, "SELECT version_num FROM alembic_version")
    except (sqlite3.Error, ValueError):
        return None
    known = ScriptDirectory(str(Path(db_migrations.__file__).parent))
    try:
        known.get_revision(found)
    except CommandError:
        newer = f"a newer MLflow than the one that is installed here ({__version__})"
        return f"{path}: was made by {newer}: update that, or {ANOTHER}"
    if found in known.get_heads():
        return None
    return f"{path}: was made by an older MLflow: keep a copy of it, then run `mlflow db upgrade {uri}`; or {ANOTHER}"
