"""A SQLite file's address, and what is wrong with it: Optuna's and MLflow's errors name statements, not causes."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from msad.errors import ConfigError

MAGIC = b"SQLite format 3\x00"
_SHORT_WAIT = 0.5  # seconds for a file that is asked only what is wrong with it
_NOT_IN_ADDRESS = re.compile(r"\?|%[0-9a-f]{2}", re.IGNORECASE)  # the beginning of arguments; a quoted character


def address_of(file: Path) -> str:
    """Return the address of a SQLite file of msad's own.

    Raises
    ------
    ConfigError
        Its path has something that means another thing in an address, so that another file would be opened.
    """
    if found := _NOT_IN_ADDRESS.search(str(file)):
        raise ConfigError(
            f"{file}: a database cannot lie there, for {found[0]!r} in its address would not be read as part of the "
            "path: choose another folder, or rename that one"
        )
    return f"sqlite:///{file}"


def sqlite_error(error: BaseException | None) -> sqlite3.Error | None:
    """Return the database's own error from which another one has come, however deep it lies; None where none has."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        for one in (error, getattr(error, "orig", None)):
            if isinstance(one, sqlite3.Error):
                return one
        error = error.__cause__ or error.__context__
    return None


def damage(path: Path) -> str | None:
    """Say why a file cannot be a whole SQLite database, by its head and length alone; None where it can be one."""
    with path.open("rb") as file:
        head = file.read(100)
    if not head:
        return "is empty (0 bytes)"
    if len(head) < 100 or head[:16] != MAGIC:
        return "is no SQLite database, or a damaged one"
    # The SQLite file format, section 1.3: page size at offset 16 (1 stands for 65536), number of pages at 28.
    page = int.from_bytes(head[16:18], "big")
    expected = (65536 if page == 1 else page) * int.from_bytes(head[28:32], "big")
    if (size := path.stat().st_size) < expected:
        return f"is cut off: it has {size:,} of {expected:,} bytes"
    return None


def fault(path: Path, error: BaseException | None = None) -> str | None:
    """Say what is wrong with a database that could not be used, None where nothing of its file is.

    Parameters
    ----------
    path
        Its file.
    error
        What the attempt ended in; without a SQLite error in it the file is tried anew.
    """
    if path.is_dir():
        return "is a folder, and no database"
    if not path.exists():
        return _unwritable(path.parent, "its folder")
    try:
        if path.stat().st_size and (broken := damage(path)):
            return broken
        found = sqlite_error(error) or _try(path)
    except OSError as cause:
        return f"cannot be read: {cause.strerror}"
    code = (getattr(found, "sqlite_errorcode", None) or 0) & 0xFF
    return {
        sqlite3.SQLITE_BUSY: "is locked by another process",
        sqlite3.SQLITE_LOCKED: "is locked by another process",
        sqlite3.SQLITE_CORRUPT: "is damaged",
        sqlite3.SQLITE_NOTADB: "is no SQLite database, or a damaged one",
        sqlite3.SQLITE_FULL: "cannot be written: the disk is full",
        sqlite3.SQLITE_READONLY: "cannot be written: it, or its folder, is read-only",
        sqlite3.SQLITE_CANTOPEN: "cannot be opened: it, or its folder, may not be read or written",
        sqlite3.SQLITE_IOERR: "cannot be read or written: the disk reports an error",
    }.get(code)


def query(path: Path, statement: str) -> list[tuple[object, ...]]:
    """Ask a database that is not to be changed; sqlite3.Error as it comes."""
    address = f"file:{quote(str(path))}?mode=ro"
    with contextlib.closing(sqlite3.connect(address, uri=True, timeout=_SHORT_WAIT)) as database:
        return database.execute(statement).fetchall()


def _try(path: Path) -> sqlite3.Error | None:
    try:
        [(answer,)] = query(path, "PRAGMA quick_check(1)")
    except sqlite3.Error as error:
        return error
    if answer != "ok":
        broken = sqlite3.DatabaseError(answer)
        broken.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        return broken
    return None


def _unwritable(folder: Path, what: str) -> str | None:
    existing = next(one for one in (folder, *folder.parents) if one.exists())
    if not existing.is_dir():
        return f"cannot be made: {existing} is no folder"
    try:
        with _probe(existing):
            return None
    except OSError as error:
        return f"cannot be made: {what} {existing} cannot be written ({error.strerror})"


@contextlib.contextmanager
def _probe(folder: Path) -> Iterator[None]:
    import tempfile

    with tempfile.TemporaryFile(dir=folder):
        yield
