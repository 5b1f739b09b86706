"""What a user says of a layout beside its name: `csv:good=OK,label=class`, in `--layout` and in a configuration.

A name and its settings are one text, which goes wherever a layout's name goes: into plans, bundles and caches' keys.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence

from msad.data_io.errors import DataError


def parted(text: str) -> tuple[str, dict[str, list[str]]]:
    """A layout's name and its settings, each of which may be given several times.

    A value with a comma stands in double quotes with its name: `csv:"good=fine, mostly"`.

    Raises
    ------
    DataError : a setting has no value.
    """
    name, colon, rest = text.partition(":")
    settings: dict[str, list[str]] = {}
    for part in next(csv.reader([rest], skipinitialspace=True)) if colon else ():
        key, equals, value = (word.strip() for word in part.partition("="))
        if not equals or not key or not value:
            raise DataError(f"layout '{text}': expected NAME:SETTING=VALUE,..., found {part!r}")
        settings.setdefault(key, []).append(value)
    return name.strip(), settings


def refuse_unknown(layout: str, settings: Mapping[str, Sequence[str]], known: Collection[str]) -> None:
    """Raise a DataError for a setting that a layout does not have."""
    for name in settings:
        if name not in known:
            listed = f"There are: {', '.join(known)}" if known else "It has none"
            raise DataError(f"layout {layout} has no setting '{name}'.{near(name, known)} {listed}")


def near(name: str, known: Iterable[str]) -> str:
    """The nearest of the known names, as a question; empty where none is near."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{found[0]}'?" if found else ""
