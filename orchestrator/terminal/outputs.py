"""Files and folders that a command is to write: refused at the start where that cannot be, made when it comes to it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

import click

Place = TypeVar("Place", str, Path)


def output_file(_context: click.Context, _option: click.Parameter, place: Place | None) -> Place | None:
    """Let pass a file that can be written, whether its folder is there or not, and `-`, the standard output."""
    if place is not None and str(place) != "-":
        path = Path(place)
        if path.is_dir():
            raise click.BadParameter(f"{path} is a folder: name a file in it")
        _require_writable(path)
    return place


def output_folder(_context: click.Context, _option: click.Parameter, place: Path | None) -> Path | None:
    """Let pass a folder that can be written or made."""
    if place is not None:
        if place.exists() and not place.is_dir():
            raise click.BadParameter(f"{place} is a file: name a folder")
        _require_writable(place)
    return place


def write_file(path: Path, text: str) -> None:
    """Write a text, and make its folder; a file's name in it may be no UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", errors="surrogateescape")


def _require_writable(path: Path) -> None:
    nearest = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    if nearest != path.absolute() and not nearest.is_dir():
        raise click.BadParameter(f"{path} cannot be made: {nearest} is a file")
    if not os.access(nearest, os.W_OK):
        raise click.BadParameter(f"{path} cannot be written: no permission to write {nearest}")
