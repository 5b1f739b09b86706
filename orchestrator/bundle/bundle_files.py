"""A bundle's folder on disk: written whole or not at all, verified on the way in, no pickle.

BUNDLE/
  bundle.json          job, scoring, threshold, provenance, SHA-256 of the other files
  model.safetensors    the network's state
  scorer.safetensors   what the scorer learned from good images
  MODEL_CARD.md        bundle.json for people; made from it alone, and made anew when it changes
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import stat
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from torch import Tensor

from msad.bundle.model_card import write_card
from msad.errors import BundleError
from msad.workspace import full_disk_told, write_atomically

FORMAT = 1
MODEL_FILE, SCORER_FILE, DESCRIPTION_FILE = "model.safetensors", "scorer.safetensors", "bundle.json"
CARD_FILE = "MODEL_CARD.md"
TENSORS = (MODEL_FILE, SCORER_FILE)
FILES = (DESCRIPTION_FILE, *TENSORS, CARD_FILE)
MOST_BYTES, MOST_DESCRIPTION_BYTES = 4 << 30, 4 << 20
"""Largest file that is read, far above any real one: a bundle may come from anywhere."""

State = Mapping[str, Tensor]


def write(directory: Path, model: State, scorer: State, description: Mapping[str, Any]) -> None:
    """Write a bundle's files; an older bundle at the same place is replaced.

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
    ResourceError
        The disk is full; an older bundle is unharmed.
    """
    beside = f".{directory.name}.{uuid.uuid4().hex[:8]}"
    unfinished, replaced = directory.with_name(f"{beside}.unfinished"), directory.with_name(f"{beside}.replaced")
    try:
        _refuse_foreign(directory)
        with full_disk_told(directory):
            unfinished.mkdir(parents=True)
        checksums = {}
        for name, tensors in zip(TENSORS, (model, scorer), strict=True):
            content = safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
            checksums[name] = hashlib.sha256(content).hexdigest()
            with full_disk_told(directory / name):
                _write_through(unfinished / name, content)
        _describe(unfinished, {"format": FORMAT, **description, "sha256": checksums})
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
    description = _describing(directory)
    model, scorer = (_tensors(directory / name, description["sha256"][name]) for name in TENSORS)
    return description, model, scorer


def summary(directory: Path) -> dict[str, Any]:
    """Return what a bundle is in a few words, for programs: category, architecture, size, threshold and run."""
    description = _describing(directory)
    names = ("category", "architecture", "image_size", "threshold")
    return {name: description[name] for name in names} | {"run_id": description["provenance"].get("run_id")}


def description_of(directory: Path) -> dict[str, Any]:
    """Return what `bundle.json` says; see `read` for the errors."""
    return _describing(directory)


def amend(directory: Path, provenance: Mapping[str, Any]) -> None:
    """Note in a finished bundle what became known only later (test figures, its run); the model card follows.

    Nothing is written where all of it is noted already.
    """
    values = _describing(directory)
    amended = {**values, "provenance": {**values["provenance"], **_json_safe(provenance)}}
    if amended != values:
        _describe(directory, amended)


def verify(directory: Path) -> None:
    """Check every file that `bundle.json` names, the model card too.

    Raises
    ------
    BundleError
        One is missing or damaged.
    """
    for name, checksum in _describing(directory)["sha256"].items():
        _read_verified(directory / name, checksum)


def _describing(directory: Path) -> dict[str, Any]:
    """Return what `bundle.json` says; its format and the names of the files in it are checked."""
    path = directory / DESCRIPTION_FILE
    try:
        description = json.loads(_read(path, MOST_DESCRIPTION_BYTES))
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}; {directory} holds no bundle, or only part of one") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: damaged ({error}); pull the bundle again") from error
    version = description.get("format") if isinstance(description, dict) else None
    if not isinstance(version, int):
        raise BundleError(f"{path}: this is not the description of a bundle")
    if version > FORMAT:
        raise BundleError(f"{path}: format {version} is newer than this program reads ({FORMAT}); upgrade msad")
    checksums = description.get("sha256")
    if not isinstance(checksums, dict) or not set(TENSORS) <= set(checksums):
        raise BundleError(f"{path}: the checksums are missing; pull the bundle again")
    if foreign := sorted(set(checksums) - set(FILES)):
        raise BundleError(f"{path}: names {foreign[0]!r}, which is no file of a bundle; do not use it")
    return description


def _tensors(path: Path, checksum: str) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(_read_verified(path, checksum))
    except safetensors.SafetensorError as error:
        raise BundleError(f"{path}: not in the safetensors format ({error}); do not use it") from error


def _read(path: Path, most: int) -> bytes:
    """Read a regular file of the bundle's own folder, whatever may lie there under its name."""
    if not path.resolve().is_relative_to(path.parent.resolve()):
        raise BundleError(f"{path}: a link to {path.resolve()}, outside of the bundle; do not use it")
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # noqa: PTH123 # opening a pipe would wait
        state = os.fstat(file.fileno())
        if not stat.S_ISREG(state.st_mode):
            raise BundleError(f"{path}: not a regular file; pull the bundle again")
        if state.st_size > most:
            raise BundleError(f"{path}: {state.st_size:,} bytes, more than any bundle's ({most:,}); do not use it")
        return file.read(most)


def _describe(directory: Path, values: Mapping[str, Any]) -> None:
    """Write the model card, then `bundle.json` with its checksum."""
    values = _json_safe(values)
    card = write_card(values).encode()
    write_atomically(directory / CARD_FILE, card)
    values["sha256"][CARD_FILE] = hashlib.sha256(card).hexdigest()
    write_atomically(directory / DESCRIPTION_FILE, json.dumps(values, indent=2, allow_nan=False).encode())


def _read_verified(path: Path, checksum: str) -> bytes:
    try:
        content = _read(path, MOST_BYTES)
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}; the bundle is incomplete, pull it again") from error
    if hashlib.sha256(content).hexdigest() != checksum:
        raise BundleError(f"{path}: damaged: its SHA-256 is not the one in {DESCRIPTION_FILE}; pull the bundle again")
    return content


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
