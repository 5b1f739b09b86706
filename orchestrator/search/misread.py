"""What YAML makes of a name that somebody has written without quotes, or of a list without brackets."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from typing import Any

TEXTS = (
    "name", "dataset", "layout", "objective", "pruner", "executor", "storage", "worker_storage", "tracking_uri",
    "address",
)  # fmt: skip
LISTS = ("categories", "architectures")
_KINDS = {bool: "yes or no", int: "a number", float: "a number", datetime.date: "a date", datetime.datetime: "a date"}


def misread(values: Mapping[str, Any], written: Mapping[str, Any]) -> list[str]:
    """Return a line for every setting that is a text, or a list of texts, and that YAML has read as something else.

    Parameters
    ----------
    values
        The settings as YAML reads them: `01` is the number 1, `2024-11-29` a date, `no` is false.
    written
        The same with every value as the text that stands in the file (`plain_yaml.as_written`).
    """
    problems = [
        problem
        for name in TEXTS
        if values.get(name) is not None
        for problem in _text(name, values[name], written[name], f"{name}: ")
    ]
    for name in LISTS:
        value = values.get(name, ())
        if isinstance(value, list):
            for item, text in zip(value, written[name], strict=True):
                problems += _text(name, item, text, "")
        elif isinstance(value, str | int | float | datetime.date):
            item = written[name] if isinstance(value, str) else f'"{written[name]}"'
            problems.append(f"{name}: {written[name]} stands where a list is meant: put it in brackets, [{item}]")
        elif isinstance(value, Mapping):
            problems.append(f"{name}: a list stands in brackets, [{', '.join(map(str, written[name]))}]")
        elif value is None:
            problems.append(f"{name}: has no value; give a list such as [first, second], or leave the line away")
    return problems


def _text(name: str, value: Any, written: Any, key: str) -> Iterator[str]:
    if isinstance(value, str):
        return
    if isinstance(value, Mapping) and len(value) == 1 and not key:  # `- rev: B`
        [(first, second)] = written.items()
        yield f'{name}: {first}: {second} is a setting with a value to YAML: put it in quotes, "{first}: {second}"'
    elif isinstance(value, list | Mapping):
        yield f"{name}: one text is meant, and no brackets or lines of its own: {key}{_first(written)}"
    elif value is None:
        yield f"{name}: {written or 'an empty item'} is no text to YAML: put it in quotes, or leave it away"
    else:
        yield f'{name}: {written} is {_KINDS[type(value)]} to YAML: put it in quotes, {key}"{written}"'


def _first(written: Any) -> str:
    return str(next(iter(written), "..."))
