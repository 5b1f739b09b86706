"""Arrays that are built once per node and shared: one folder of .npy files per key, memory-mapped by every process.

An entry comes into being by renaming a finished, synced folder, so that a reader sees a whole entry or none. One
process builds it under a file lock, which the kernel releases however that process ends; the others wait and then map
the result. What a killed builder leaves behind is a folder that nobody reads, removed by the next build. Entries are
never changed; an entry's time of change is that of its last use. The directory may be deleted whenever no process uses
it, entries at any time: a process that has mapped one keeps it, and the next builds it anew.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from msad.data_io.errors import DataError

_BUILDING = "building-"
_ENTRY = re.compile(r"[0-9a-f]{40}")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def default_cache_dir(else_at: Path | None = None) -> Path:
    """$MSAD_CACHE if set, else `else_at`, else the folder msad in the user's cache directory.

    Where there is no home, or one that cannot be written, it is a folder of this user's in the temporary one.
    """
    if chosen := chosen_cache_dir() or else_at:
        return chosen
    if sys.platform != "darwin" and (caches := os.environ.get("XDG_CACHE_HOME")):
        return Path(caches) / "msad"
    try:
        folder = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "msad"
    except RuntimeError:  # a user ID without an entry, as containers have
        folder = None
    if folder and _can_be_written(folder):
        return folder
    return Path(tempfile.gettempdir()) / f"msad-cache-uid{os.getuid()}"


def _can_be_written(folder: Path) -> bool:
    return os.access(next(place for place in (folder, *folder.parents) if place.exists()), os.W_OK)


def chosen_cache_dir() -> Path | None:
    """$MSAD_CACHE, None where it is not set."""
    chosen = os.environ.get("MSAD_CACHE")
    return Path(chosen).expanduser().absolute() if chosen else None


def has_entry(key: str, directory: Path | str | None = None) -> bool:
    """Whether `cached_arrays` has an entry of that key, so that it need not be built."""
    return (_directory(directory) / _name(key)).is_dir()


def cached_arrays(
    key: str, build: Callable[[], dict[str, np.ndarray]], directory: Path | str | None = None
) -> dict[str, np.memmap]:
    """The arrays that `build` makes, built at most once per directory and key, by whichever process comes first.

    Parameters
    ----------
    key : everything the arrays depend on, as text (the images' identity, sizes, version of the code that builds).
    build : makes the arrays, by name; called only when they are not there; its exceptions pass through.
    directory : the cache; None for `default_cache_dir()`.

    Returns
    -------
    The arrays by name, memory-mapped and read-only.

    Raises
    ------
    DataError : no space left, or the directory cannot be written; names the directory and the bytes needed.
    """

    def write(folder: Path) -> None:
        arrays = build()
        with space_for(folder, sum(array.nbytes for array in arrays.values())):
            for name, array in arrays.items():
                with (folder / f"{name}.npy").open("wb") as file:
                    np.save(file, array, allow_pickle=False)

    return entry(key, write, directory)


@dataclass(frozen=True)
class Cleaned:
    """How many entries were removed from a cache and how many stay, each with their bytes."""

    removed: int = 0
    removed_bytes: int = 0
    kept: int = 0
    kept_bytes: int = 0


def remove_unused(seconds: float, directory: Path | str | None = None) -> Cleaned:
    """Remove the entries that nobody has asked for in the last seconds, and what killed builders left behind.

    Parameters
    ----------
    seconds : 0 removes all but those that are being built.
    directory : the cache; None for `default_cache_dir()`.

    Raises
    ------
    DataError : the directory cannot be written.
    """
    directory = _directory(directory)
    removed: list[int] = []
    kept: list[int] = []
    folders = [path for path in directory.glob("*") if _ENTRY.fullmatch(path.name)]
    with _told_apart(directory):
        if folders:
            _remove_leftovers(directory)
        for folder in folders:
            # Two who clean at once: what the other has removed meanwhile is the other's to count.
            with _lock_if_free(directory, folder.name) as free, suppress(FileNotFoundError):
                size = sum(path.stat().st_size for path in folder.iterdir())
                unused = free and time.time() - folder.stat().st_mtime >= seconds
                if unused:
                    # Renamed first: who lists it now finds all of it or nothing.
                    shutil.rmtree(folder.replace(directory / f"{_BUILDING}{folder.name}"))
                (removed if unused else kept).append(size)
    return Cleaned(len(removed), sum(removed), len(kept), sum(kept))


def entry(key: str, write: Callable[[Path], None], directory: Path | str | None = None) -> dict[str, np.memmap]:
    """As `cached_arrays`, for arrays too large to build in memory: `write` is given a folder to put .npy files into."""
    directory, name = _directory(directory), _name(key)
    arrays = _map_entry(directory / name)
    if arrays is not None:
        return arrays
    with _told_apart(directory), _locked(directory, name):
        # Whoever held the lock before may have built it.
        arrays = _map_entry(directory / name)
        if arrays is not None:
            return arrays
        shutil.rmtree(directory / name, ignore_errors=True)  # an entry that cannot be mapped is damaged: build it anew
        _remove_leftovers(directory, name)
        building = directory / f"{_BUILDING}{name}"
        building.mkdir()
        try:
            write(building)
            for path in [*building.iterdir(), building]:
                _sync(path)
            building.replace(directory / name)
            _sync(directory)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        arrays = _map_entry(directory / name)
    if arrays is None:
        raise DataError(f"{directory / name}: cannot be read back after it was written; is the disk failing?")
    return arrays


def _directory(given: Path | str | None) -> Path:
    return Path(given) if given is not None else default_cache_dir()


def _name(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:40]


@contextmanager
def space_for(folder: Path, needed: int) -> Iterator[None]:
    """Write `needed` bytes in here: a disk too small is told before the work, one that fills up meanwhile then.

    Raises
    ------
    DataError : no space left; names the cache and the bytes needed.
    """
    free = shutil.disk_usage(folder).free
    try:
        if free < needed:
            raise OSError(errno.ENOSPC, f"{free:,} bytes free")
        yield
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        raise DataError(
            f"{folder.parent}: no space left for the cache, {needed:,} bytes needed ({error.strerror}); "
            "free some or set MSAD_CACHE to a folder on a larger disk"
        ) from error


@contextmanager
def _told_apart(directory: Path) -> Iterator[None]:
    """Turn the errors of writing into sentences; those of `write` about images are DataErrors already."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise DataError(
                f"{directory}: no space left for the cache ({error.strerror}); "
                "free some or set MSAD_CACHE to a folder on a larger disk"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise DataError(
                f"{directory}: the cache cannot be written ({error.strerror}); set MSAD_CACHE to a folder of your own"
            ) from error
        raise


@contextmanager
def _locked(directory: Path, name: str) -> Iterator[None]:
    # Lock files stay: removing one while another process waits on it would give two processes the same lock.
    locks = directory / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / name).open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _lock_if_free(directory: Path, name: str) -> Iterator[bool]:
    """Hold a lock, if nobody else does; yield whether."""
    with (directory / "locks" / name).open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except BlockingIOError:
            free = False
        yield free


def _remove_leftovers(directory: Path, own: str | None = None) -> None:
    """Remove the folders of builders that were killed: those whose lock nobody holds, or the caller."""
    for folder in directory.glob(f"{_BUILDING}*"):
        name = folder.name.removeprefix(_BUILDING)
        if name == own:
            shutil.rmtree(folder, ignore_errors=True)
            continue
        with _lock_if_free(directory, name) as free:
            if free:
                shutil.rmtree(folder, ignore_errors=True)


def _map_entry(folder: Path) -> dict[str, np.memmap] | None:
    """The arrays of an entry; None if there is no such entry, it cannot be read or holds anything but plain arrays."""
    try:
        arrays = {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in folder.iterdir()}
    except Exception:  # a header that is none raises whatever Python's parser does; each means a damaged entry
        return None
    with suppress(OSError):  # a cache that this process may only read
        os.utime(folder)
    # Of an archive (.npz) numpy makes no map.
    return arrays if arrays and all(isinstance(array, np.memmap) for array in arrays.values()) else None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
