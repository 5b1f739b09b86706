"""An object store between workers and the sweep's folder, for a cluster whose nodes share no folder.

```
URI/NAME/
  jobs/JOB_ID/     what a job's worker has written (`msad.workspace`), and its checkpoint in a direct trial
  train/           Ray Train's checkpoints while its jobs run
```
The sweep's own folder is on the machine of the process that runs the sweep, and holds the configuration, Optuna's
database and the lock, which an object store cannot keep: it has no locks. A worker works on a copy of its job's folder
and uploads what has changed after every report; the sweep's process downloads it. Credentials come from the environment
of each node, never from an address, which is written into `sweep.yaml` and shown by Ray's dashboard.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from msad.cluster.workers.object_store import below, download, list_files, open_storage, remove_folder, write
from msad.cluster.workers.sidecar import sidecar
from msad.cluster.workers.task import Task
from msad.errors import ConfigError, ResourceError, first_line
from msad.workspace import JobDirectory, Workspace

PROGRESS = "progress.jsonl"
# Uploaded before all else, so that it never lacks the epoch of a checkpoint; and what says that all else is there.
LAST = (
    "result.json",
    "test.json",
    "test_report.json",
    "unmeasured.json",
    "failure.json",
)  # what says that all else is there
UNREACHABLE = "cannot be reached: check the address, and the credentials in this process's environment"


def claim(address: str, name: str, *, new: bool) -> None:
    """Try a store before a sweep begins, and refuse the name of a new one where the store holds files of another.

    Raises
    ------
    ConfigError
        There are files of that name, or the address means nothing.
    ResourceError
        The store does not answer or cannot be written.
    """
    fs, folder = open_storage(below(address, name))
    try:
        if new and list_files(fs, folder):
            raise ConfigError(f"{address} holds files of a sweep named {name!r} already: choose another --name")
        write(fs, f"{folder}/claim", b"")
        fs.delete_file(f"{folder}/claim")
    except OSError as error:
        raise ResourceError(f"--worker-storage {address} {UNREACHABLE}: {first_line(error)}") from error


def fetch(address: str, directory: JobDirectory, *, progress_only: bool = False) -> None:
    """Bring what a job's worker has uploaded into the job's folder of this machine; OSError where it cannot be had."""
    fs, folder = open_storage(address)
    found = [f"{folder}/{PROGRESS}"] if progress_only else list_files(fs, folder)
    for path in found:
        download(fs, path, directory.path / _inside(path, folder))
    if not progress_only and f"{folder}/failure.json" not in found:  # of an earlier attempt
        (directory.path / "failure.json").unlink(missing_ok=True)


def remove_checkpoints(storage: str, job_id: str) -> None:
    """Remove what Ray Train has kept of a job, in a folder or a store; what cannot be removed is left."""
    if "://" in storage:
        remove_folder(below(storage, job_id))
    else:
        shutil.rmtree(Path(storage) / job_id, ignore_errors=True)


def jobs_with_checkpoints(storage: str) -> set[str]:
    """Return the IDs of the jobs of which Ray Train has kept checkpoints, in a folder or a store that answers."""
    from pyarrow.fs import FileSelector

    with contextlib.suppress(OSError):
        fs, folder = open_storage(storage)
        return {info.base_name for info in fs.get_file_info(FileSelector(folder, allow_not_found=True))}
    return set()


def train_storage(workspace: Workspace, address: str | None) -> str:
    """Return where Ray Train keeps the checkpoints of a sweep's jobs while they run."""
    return below(address, workspace.root.name, "train") if address else str(workspace.root / "train")


@contextmanager
def working_copy(task: Task) -> Iterator[tuple[Task, Callable[[], None]]]:
    """Yield a task with a folder that is on this node, and a function that uploads what has changed in it.

    What has changed at the end is uploaded too. Without a store it is the folder that all nodes share, and nothing is
    uploaded.
    """
    if task.store is None:
        yield task, lambda: None
        return
    fs, folder = open_storage(task.store)
    with tempfile.TemporaryDirectory() as place, sidecar(here := Path(place) / task.job_id, task.store):
        here.mkdir()
        for path in list_files(fs, folder):
            download(fs, path, here / _inside(path, folder))
        known = _stamps(here)

        def upload() -> None:
            stamps = _stamps(here)
            changed = [name for name, stamp in stamps.items() if known.get(name) != stamp]
            for name in sorted(changed, key=lambda name: (name != PROGRESS, name in LAST, name)):
                write(fs, f"{folder}/{name}", (here / name).read_bytes())
            for name in known.keys() - stamps.keys():
                fs.delete_file(f"{folder}/{name}")
            known.clear()
            known.update(stamps)

        yield dataclasses.replace(task, directory=JobDirectory(here)), upload
        upload()


def _inside(path: str, folder: str) -> PurePosixPath:
    """Return a file's path below its folder; a name that leads out of it is refused."""
    name = PurePosixPath(path).relative_to(folder)
    if ".." in name.parts:
        raise ResourceError(f"{path}: no name that a worker gives its files; remove it from the store")
    return name


def _stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Return when each file was written, and its size."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): ((stat := path.stat()).st_mtime_ns, stat.st_size) for path in files}
