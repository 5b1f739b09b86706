"""A sweep's folder works wherever it lies: what was moved along with it is found, and nothing that is absent is made.

`sweep.yaml` has absolute paths. Where the folder is not where they were written, the images and a database that lay
beside it are looked for by the same way from its new place, and count before those at the old one: a copy is complete
in itself. What MLflow knows of its files' places is the concern of `artifacts.py`.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from msad.errors import ConfigError, TrackingError
from msad.search.config import SweepConfig
from msad.sqlite_file import address_of
from msad.tracking.store import connect, database_file, find_experiment
from msad.workspace import Workspace


def follow(config: SweepConfig, workspace: Workspace, tracking_uri: str | None, dataset: Path | None) -> SweepConfig:
    """Return a kept configuration with its paths as they are now.

    Parameters
    ----------
    config, workspace
        As it was written, and the folder that it was read from.
    tracking_uri, dataset
        What the user says of where they are now, None where nothing.

    Raises
    ------
    TrackingError
        The database of the sweep is in neither place and `tracking_uri` is not given.
    ConfigError
        The images are in neither place.
    """
    before = config.storage / config.name
    sweep_id = workspace.claim_id(f"path:{before}")  # of a sweep that is older than identities: the experiment's tag
    dataset = dataset.expanduser().resolve() if dataset else _there(config.dataset, before, workspace.root)
    if not dataset.is_dir():
        raise ConfigError(f"{dataset}: the images of the sweep are not there: say where they are with --dataset")
    uri = tracking_uri or config.tracking_uri
    file = database_file(config.tracking_uri)
    if file and not tracking_uri:
        found = [place for place in dict.fromkeys([_way(file, before, workspace.root), file]) if place.is_file()]
        if not found:
            raise TrackingError(
                f"{config.tracking_uri}: no such database, and none where the sweep's folder is now: say with "
                "--tracking-uri where the MLflow store of the sweep is"
            )
        known = (place for place in found if _knows(address_of(place), config.name, sweep_id))
        uri = address_of(next(known, found[0]))
    return config.model_copy(update={"storage": workspace.root.parent, "dataset": dataset, "tracking_uri": uri})


def _there(path: Path, before: Path, root: Path) -> Path:
    moved = _way(path, before, root)
    return moved if moved.exists() else path


def _way(path: Path, before: Path, root: Path) -> Path:
    """Return where a path leads that is gone from the folder `root` as from `before`."""
    return Path(os.path.normpath(root / os.path.relpath(path, before)))


def _knows(tracking_uri: str, sweep: str, sweep_id: str) -> bool:
    with contextlib.suppress(ConfigError):  # it has another sweep of that name
        return find_experiment(connect(tracking_uri), sweep, tracking_uri, sweep_id) is not None
    return False
