"""Files in an object store, or in a folder, by their address."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from msad.addresses import hide_secrets, public
from msad.errors import ConfigError, first_line

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem


def below(address: str, *parts: str) -> str:
    """Return the address of a folder below another; arguments such as `?region=` stay at its end."""
    path, mark, arguments = address.partition("?")
    return "/".join([path.rstrip("/"), *parts]) + mark + arguments


def open_storage(address: str) -> tuple[FileSystem, str]:
    """Return pyarrow's file system and the path in it of an address, or of an absolute path.

    Raises
    ------
    ConfigError
        pyarrow does not know the scheme, or an argument of the address.
    """
    from pyarrow.fs import FileSystem

    try:
        return FileSystem.from_uri(address)
    except (ValueError, OSError) as error:  # pyarrow's own errors are both
        raise ConfigError(f"--worker-storage {public(address)}: {hide_secrets(first_line(error))}") from error


def read_file(address: str, name: str) -> bytes:
    """Return a file of a store's folder; OSError where it cannot be had."""
    fs, folder = open_storage(address)
    with fs.open_input_stream(f"{folder}/{name}") as file:
        return file.read()


def write_file(address: str, name: str, content: bytes) -> None:
    """Write a file into a store's folder; OSError where it cannot be written."""
    fs, folder = open_storage(address)
    write(fs, f"{folder}/{name}", content)


def remove_folder(address: str) -> None:
    """Remove a folder of a store with all that it holds; what is not there, or cannot be removed, is left."""
    fs, folder = open_storage(address)
    with contextlib.suppress(OSError):
        fs.delete_dir(folder)


def list_files(fs: FileSystem, folder: str) -> list[str]:
    """Return the paths of all files below a folder, sorted; none where it is not there."""
    from pyarrow.fs import FileSelector, FileType

    infos = fs.get_file_info(FileSelector(folder, recursive=True, allow_not_found=True))
    return sorted(info.path for info in infos if info.type == FileType.File)


def download(fs: FileSystem, path: str, to: Path) -> None:
    """Bring one file; nothing of it is at its place before all of it is there."""
    to.parent.mkdir(parents=True, exist_ok=True)
    partial = to.with_name(f".{to.name}.partial")
    with fs.open_input_stream(path) as source, partial.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
    partial.replace(to)


def write(fs: FileSystem, path: str, content: bytes) -> None:
    """Write one file; its folder is made where it is not there."""
    fs.create_dir(path.rpartition("/")[0], recursive=True)
    with fs.open_output_stream(path) as file:
        file.write(content)
