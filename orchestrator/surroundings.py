"""What a process may lack that libraries take for granted: a user's name, a home, a folder that can be written.

A container with an arbitrary user ID has none of them. MLflow asks for the home when it is imported, and for the
user's name at every run; none of that is worth ending a search for.
"""

from __future__ import annotations

import errno
import getpass
import os
import sys
import tempfile
from pathlib import Path

# Ray's sockets lie below its temporary folder; a socket's path is at most 107 bytes long, 103 on macOS. What Ray adds:
# /ray/session_2026-11-29_08-00-35_123456_1234567/sockets/plasma_store
_SOCKET_BYTES = 103 if sys.platform == "darwin" else 107
_RAY_ADDS = 70


def complete() -> None:
    """Give this process, and those that it starts, a user's name and a home where it has none."""
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):  # KeyError before Python 3.13
        os.environ["LOGNAME"] = f"uid{os.getuid()}"
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = str(_own_folder())
    if "MPLCONFIGDIR" not in os.environ and not _writable(Path.home()):
        os.environ["MPLCONFIGDIR"] = str(_own_folder())  # else a line for every process that draws


def ray_folder() -> str | None:
    """Return where Ray is to keep its files where the folder that it would take has too long a path; None: its own.

    Raises
    ------
    OSError
        There is no folder with a short path that can be written.
    """
    chosen = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    if len(os.fsencode(os.path.realpath(chosen))) + _RAY_ADDS <= _SOCKET_BYTES:
        return None
    if not _writable(Path("/tmp")):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/tmp")
    return "/tmp/ray"  # where Ray is without a temporary folder of the user's own


def _own_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"msad-uid{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        owner = folder.lstat().st_uid
    except OSError:
        return Path(tempfile.mkdtemp(prefix="msad-"))
    # One that another user has put there is not to be trusted with what is read back from it.
    return folder if owner == os.getuid() and not folder.is_symlink() else Path(tempfile.mkdtemp(prefix="msad-"))


def _writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK)
