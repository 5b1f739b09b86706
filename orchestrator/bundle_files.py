"""A bundle's folder on disk: written whole or not at all, verified on the way in, no pickle.

BUNDLE/
  bundle.json          job, scoring, threshold, provenance, SHA-256 of the two files below
  model.safetensors    the network's state
  scorer.safetensors   what the scorer learned from good images
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from torch import Tensor

from orchestrator.errors import BundleError

FORMAT = 1
MODEL_FILE, SCORER_FILE, DESCRIPTION_FILE = "model.safetensors", "scorer.safetensors", "bundle.json"

State = Mapping[str, Tensor]


def write(directory: Path, model: State, scorer: State, description: Mapping[str, Any]) -> None:
    """Write a bundle's three files; an older bundle at the same place is replaced.

    Parameters
    ----------
    directory
        Where; a folder that holds anything but a bundle is refused.
    model, scorer
        Named tensors, on any device.
    description
        What `bundle.json` is to say besides the format and the checksums; NaN and infinities become null.

    Raises
    ------
    BundleError
        The folder is taken or cannot be written.
    """
    beside = f".{directory.name}.{uuid.uuid4().hex[:8]}"
    unfinished, replaced = directory.with_name(f"{beside}.unfinished"), directory.with_name(f"{beside}.replaced")
    try:
        _refuse_foreign(directory)
        unfinished.mkdir(parents=True)
        checksums = {}
        for name, tensors in ((MODEL_FILE, model), (SCORER_FILE, scorer)):
            content = safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
            checksums[name] = hashlib.sha256(content).hexdigest()
            _write_through(unfinished / name, content)
        values = {"format": FORMAT, **description, "sha256": checksums}
        text = json.dumps(_json_safe(values), indent=2, allow_nan=False)
        _write_through(unfinished / DESCRIPTION_FILE, text.encode())
        # A folder cannot be renamed onto a full one, so the older bundle steps aside first.
        with contextlib.suppress(FileNotFoundError):
            directory.rename(replaced)
        unfinished.rename(directory)
    except OSError as error:
        raise BundleError(f"{directory}: the bundle cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def read(directory: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """Return a bundle's description and the tensors of model and scorer, on the CPU.

    Raises
    ------
    BundleError
        A file is missing or damaged, or the format is newer than this program.
    """
    path = directory / DESCRIPTION_FILE
    try:
        description = json.loads(path.read_bytes())
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}; {directory} holds no bundle, or only part of one") from error
    except ValueError as error:
        raise BundleError(f"{path}: damaged ({error}); pull the bundle again") from error
    version = description.get("format") if isinstance(description, dict) else None
    if not isinstance(version, int):
        raise BundleError(f"{path}: this is not the description of a bundle")
    if version > FORMAT:
        raise BundleError(f"{path}: format {version} is newer than this program reads ({FORMAT}); upgrade msad")
    checksums = description.get("sha256")
    if not isinstance(checksums, dict) or not {MODEL_FILE, SCORER_FILE} <= set(checksums):
        raise BundleError(f"{path}: the checksums are missing; pull the bundle again")
    model, scorer = (_read_tensors(directory / name, checksums[name]) for name in (MODEL_FILE, SCORER_FILE))
    return description, model, scorer


def summary(directory: Path) -> dict[str, Any]:
    """Return what a bundle is in a few words, for programs: category, architecture, size, threshold and run."""
    description = json.loads((directory / DESCRIPTION_FILE).read_text())
    names = ("category", "architecture", "image_size", "threshold")
    return {name: description[name] for name in names} | {"run_id": description["provenance"].get("run_id")}


def _read_tensors(path: Path, checksum: str) -> dict[str, Tensor]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}; the bundle is incomplete, pull it again") from error
    if hashlib.sha256(content).hexdigest() != checksum:
        raise BundleError(f"{path}: damaged: its SHA-256 is not the one in {DESCRIPTION_FILE}; pull the bundle again")
    return safetensors.torch.load(content)


def _refuse_foreign(directory: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if any(directory.iterdir()) and not (directory / DESCRIPTION_FILE).is_file():
            raise BundleError(f"{directory}: holds something that is no bundle; choose another folder")


def _write_through(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _json_safe(value: Any) -> Any:
    """Replace what JSON has no word for: NaN and infinities by null, numpy numbers by Python's."""
    if isinstance(value, Mapping):
        return {str(key): _json_safe(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_safe(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
