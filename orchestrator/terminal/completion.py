"""What the shell offers at the Tab key: names that are cheap to know, without torch, Ray or MLflow.

A completion must come at once and never fail, so whatever goes wrong offers nothing.
"""

from __future__ import annotations

import functools
import os
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import click
from click.shell_completion import CompletionItem

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _completer(names: Callable[[click.Context], Iterable[str]]) -> Completer:
    """Offer the names that begin with the last of the comma-separated words typed so far."""

    @functools.wraps(names)
    def complete(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        before, comma, word = incomplete.rpartition(",")
        try:
            fitting = sorted(written for name in names(context) if (written := _quoted(name)).startswith(word))
        except Exception:
            return []
        given = before.split(",")
        return [CompletionItem(before + comma + name) for name in fitting if name not in given]

    return complete


def _quoted(name: str) -> str:
    """Return a name as an option that parts names at commas takes it."""
    return '"' + name.replace('"', '""') + '"' if "," in name or name.startswith('"') else name


@_completer
def architectures(_context: click.Context) -> Iterable[str]:
    # Each has a search space of its name; the package itself is not imported, because that loads Optuna.
    folders = find_spec("msad.search_spaces").submodule_search_locations
    own = {path.stem for folder in folders for path in Path(folder).glob("[a-z]*.py")} - {"shared"}
    return own | {point.name for point in entry_points(group="msad.architectures")}


@_completer
def categories(context: click.Context) -> Iterable[str]:
    from msad.data_io.layout import list_categories

    return list_categories(context.params["dataset"], context.params.get("layout") or "auto")


@_completer
def kept_sweeps(context: click.Context) -> Iterable[str]:
    """The sweeps of a storage folder."""
    folder = Path(context.params.get("storage") or "sweeps")
    return (path.parent.name for path in folder.glob("*/sweep.yaml"))


@_completer
def tracked_sweeps(context: click.Context) -> Iterable[str]:
    """The sweeps of an MLflow database."""
    return (name for (name,) in _query(context, "SELECT value FROM experiment_tags WHERE key = 'msad.sweep'"))


@_completer
def registered_models(context: click.Context) -> Iterable[str]:
    """Every CATEGORY@ALIAS of an MLflow database."""
    rows = _query(
        context,
        "SELECT coalesce(tag.value, substr(model.name, 6)), alias FROM registered_model_aliases AS model "
        "LEFT JOIN registered_model_tags AS tag ON tag.name = model.name AND tag.key = 'msad.category'",
    )
    return (f"{category}@{alias}" for category, alias in rows)


def models(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Registered models, and the shell's own completion of folders."""
    return [*registered_models(context, parameter, incomplete), CompletionItem(incomplete, type="dir")]


def _query(context: click.Context, question: str) -> list[tuple[str, ...]]:
    """Ask a local MLflow database; a server would have to be waited for, so it is not asked."""
    uri = context.params.get("tracking_uri") or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if not uri.startswith("sqlite:///"):
        return []
    path = quote(str(Path(uri.removeprefix("sqlite:///")).absolute()))
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=0.2)) as database:
        return database.execute(question).fetchall()
