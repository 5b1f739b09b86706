"""Which code runs: the package's version, and the commit of a checkout of it."""

from __future__ import annotations

import hashlib
import os
import subprocess
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

FOLDERS = ("orchestrator", "models", "data_io", "search_spaces")  # of a checkout
PACKAGES = ("msad", "msad.models", "msad.data_io", "msad.search_spaces")
CHANGED = ".changed"  # at the end of a version: files differ from those of the commit


def code_version(folder: Path | None = None) -> str:
    """Return the package's version, with the commit where its own files are under version control.

    A commit alone is no sign of that: a virtual environment often lies in the repository of something else.

    Parameters
    ----------
    folder
        That of the packages; None for where this one runs from.

    Returns
    -------
    str
        `1.2.0`, `1.2.0+0123456789ab`, or `1.2.0+0123456789ab.changed` where files differ from the commit's.
    """
    folder = folder or Path(__file__).resolve().parent.parent
    number = version("msad")
    if not _git(folder, "ls-files", "--", f"orchestrator/{Path(__file__).name}"):
        return number
    commit = _git(folder, "rev-parse", "--short=12", "HEAD")
    if not commit:
        return number
    changed = _git(folder, "status", "--porcelain", "--", *FOLDERS)
    return f"{number}+{commit}{CHANGED if changed else ''}"


def code_digest() -> str:
    """Return what distinguishes this code from another version's, wherever it is installed."""
    files: dict[str, Path] = {}  # by their names in a wheel, where the packages lie in one another
    for name in PACKAGES:
        (place,) = find_spec(name).submodule_search_locations
        folder = name.replace(".", "/")
        files |= {f"{folder}/{path.relative_to(place).as_posix()}": path for path in Path(place).rglob("*.py")}
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(name.encode() + files[name].read_bytes())
    return digest.hexdigest()


def _git(folder: Path, *words: str) -> str:
    """Return what git says, empty where it says nothing, refuses, or is not there."""
    # Where msad is called by one of git's hooks, these name the repository of that one.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(["git", *words], cwd=folder, env=environment, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
