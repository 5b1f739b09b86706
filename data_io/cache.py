"""Decoded images: each file is decoded once per node and size, then memory-mapped by all processes.

An array is keyed by the content of its files, so that a moved or copied dataset is decoded no second time. So that a
warm start reads no image either, a pointer keyed by path, size and times of every file holds the contents' digests:
touching a file costs one hashing, changing it one decoding.

Legend of shapes: N images, in the order of the paths.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from msad.data_io.array_cache import cached_arrays, default_cache_dir, entry, space_for
from msad.data_io.decode import Decoded, Size, height_width, read_image, refuse_strange_file, resize
from msad.data_io.errors import DataError
from msad.data_io.parallel import map_in_threads
from msad.data_io.shape import plain_size
from msad.data_io.wide import FULL

__all__ = ["cached_arrays", "default_cache_dir", "digests", "file_states", "load_images", "load_notes"]

# To be raised whenever read_image() or resize() give other pixels for the same file.
PIXELS_VERSION = 2
_DIGEST_BYTES = 32


def load_images(
    paths: Sequence[Path | str], size: Size, directory: Path | str | None = None, bit_depth: int = FULL
) -> np.ndarray:
    """Images as one array, decoded and resized on the first call on a node, mapped on every later one.

    Parameters
    ----------
    paths : image files, at least one.
    size : what they are resized to, see `msad.data_io.decode.resize`.
    directory : the cache; None for `default_cache_dir()`.
    bit_depth : bits that a camera fills of files of more than 8, see `msad.data_io.wide`.

    Returns
    -------
    uint8 memory map N×h×w×3 of that size, RGB, read-only.

    Raises
    ------
    DataError : files that cannot be read or decoded, all of them in one error; no space left.
    """
    return _load(paths, size, directory, bit_depth)["images"]


def load_notes(
    paths: Sequence[Path | str], size: Size, directory: Path | str | None = None, bit_depth: int = FULL
) -> np.ndarray:
    """What `msad.data_io.decode.Decoded` says of each image beside its pixels, from the same entry as `load_images`.

    Returns
    -------
    int64 memory map N×3: largest value of a file of more than 8 bits (-1: it has 8), pixels clipped, pages.
    """
    return _load(paths, size, directory, bit_depth)["notes"]


def _load(
    paths: Sequence[Path | str], size: Size, directory: Path | str | None, bit_depth: int
) -> dict[str, np.memmap]:
    paths = [Path(path) for path in paths]
    height, width = height_width(size)
    if not paths or min(height, width) < 1:
        raise DataError(f"{len(paths)} images at {size} pixels asked for; at least one of each is needed")
    contents = _digests(paths, directory)

    def write(folder: Path) -> None:
        shape = (len(paths), height, width, 3)
        problems, notes = [], []
        # Written in sequence, not through a map: a full disk is then an error here and not a bus error of the process.
        with space_for(folder, math.prod(shape)), (folder / "images.npy").open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            items = zip(paths, contents, strict=True)
            for decoded in map_in_threads(lambda item: _decoded_or_problem(*item, size, bit_depth), items):
                if isinstance(decoded, str):
                    problems.append(decoded)
                elif not problems:
                    file.write(np.ascontiguousarray(decoded.pixels).data)
                    notes.append((-1 if decoded.largest is None else decoded.largest, decoded.clipped, decoded.pages))
            if not problems:
                with (folder / "notes.npy").open("wb") as file:
                    np.save(file, np.array(notes, np.int64), allow_pickle=False)
        if problems:
            raise DataError("\n".join(problems))

    key = f"images v{PIXELS_VERSION} {plain_size(size)} {bit_depth} {hashlib.sha256(b''.join(contents)).hexdigest()}"
    return entry(key, write, directory)


def digests(paths: Sequence[Path | str], directory: Path | str | None = None) -> list[str]:
    """The sha256 of each file's content, in the order of the paths.

    Parameters
    ----------
    paths : files.
    directory : the cache, which spares reading unchanged files again; None for `default_cache_dir()`.

    Returns
    -------
    64 hexadecimal digits for each file.

    Raises
    ------
    DataError : files that cannot be read, all of them in one error.
    """
    return [digest.hex() for digest in _digests([Path(path) for path in paths], directory)]


def _digests(paths: list[Path], directory: Path | str | None) -> list[bytes]:
    """sha256 of each file's content, by way of the pointer of exactly these files in this state."""
    before = file_states(paths)
    key = f"digests {hashlib.sha256(repr(before).encode()).hexdigest()}"

    def build() -> dict[str, np.ndarray]:
        outcomes = list(map_in_threads(_digest_or_problem, paths))
        problems = [outcome for outcome in outcomes if isinstance(outcome, str)]
        problems += [
            _changed(path) for path, old, new in zip(paths, before, file_states(paths), strict=True) if old != new
        ]
        if problems:
            raise DataError("\n".join(problems))
        return {"digests": np.frombuffer(b"".join(outcomes), np.uint8).reshape(-1, _DIGEST_BYTES)}

    if not paths:
        return []
    return [row.tobytes() for row in cached_arrays(key, build, directory)["digests"]]


def file_states(paths: list[Path]) -> list[tuple[str, int, int, int]]:
    """Path, size and times of each file. The time of change (ctime) also tells a file that was replaced by one with the
    same size and a copied modification time.
    """
    states, problems = [], []
    for path in paths:
        try:
            refuse_strange_file(path)
            state = path.stat()
        except DataError as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"{path}: {error.strerror}; was it moved or renamed?")
        else:
            states.append((os.path.abspath(path), state.st_size, state.st_mtime_ns, state.st_ctime_ns))  # noqa: PTH100
    if problems:
        raise DataError("\n".join(problems))
    return states


def _digest_or_problem(path: Path) -> bytes | str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        return f"{path}: {error.strerror}; make it a readable file"


def _decoded_or_problem(path: Path, digest: bytes, size: Size, bit_depth: int) -> Decoded | str:
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).digest() != digest:
            return _changed(path)
        decoded = read_image(path, content, bit_depth)
        return dataclasses.replace(decoded, pixels=resize(decoded.pixels, size))
    except DataError as error:
        return str(error)
    except OSError as error:
        return f"{path}: {error.strerror}; make it a readable file"


def _changed(path: Path) -> str:
    return f"{path}: was changed while it was being read; run again when nothing writes to it"
