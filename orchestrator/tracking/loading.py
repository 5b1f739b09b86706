"""A finished model by whatever it is known: its folder, its run's ID, or that it is a category's champion."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from msad.bundle.bundles import Bundle
from msad.errors import BundleError
from msad.tracking.model_store import pull


def load(reference: str | Path, device: str | None = None, tracking_uri: str | None = None) -> Bundle:
    """Read a bundle from a folder or from the tracking store.

    Parameters
    ----------
    reference
        A folder; or a string that is none: the ID of a run, or `CATEGORY@champion`, which is pulled first.
    device
        Where to put the model, e.g. `cuda:1`; by default the GPU if there is one, else the CPU.
    tracking_uri
        The store a run is pulled from.

    Raises
    ------
    BundleError
        A file is missing or damaged, or the format is newer than this program.
    ConfigError
        There is no such device.
    TrackingError
        There is no such run, or it has no bundle.
    """
    if Path(reference).is_dir():
        return Bundle.load(reference, device)
    if isinstance(reference, Path) or os.sep in reference or reference.startswith("."):
        raise BundleError(f"{reference}: no such folder; give a bundle's folder, a run ID or CATEGORY@champion")
    with tempfile.TemporaryDirectory(prefix="msad-") as temporary:
        return Bundle.load(pull(reference, Path(temporary) / "bundle", tracking_uri), device)
