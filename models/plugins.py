"""Code from outside of this repository, by name: a Python path `package.module:Name`, or a package's entry point."""

from __future__ import annotations

import functools
import importlib
import traceback
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from msad.models.errors import ModelError, did_you_mean


def is_python_path(name: str) -> bool:
    """Return whether a name reads `package.module:Name`; a file's path does not."""
    module, colon, attribute = name.partition(":")
    names = [*module.split("."), attribute]
    return bool(colon) and not module.endswith(".py") and all(part.isidentifier() for part in names)


def load_python_path(name: str, wanted: type | tuple[type, ...] = object) -> Any:
    """Import a module and return the object of that name in it.

    Parameters
    ----------
    name
        `package.module:Name`. The module must be importable wherever the object is used, on every node of a cluster: a
        file's path means nothing on another machine.
    wanted
        What kind of object is looked for: a misspelt name is answered by the nearest object of that kind.

    Raises
    ------
    ModelError
        The name is no Python path, or the module cannot be imported or has no such object.
    """
    if not is_python_path(name):
        folder, _, file = name.partition(":")[0].rpartition("/")
        advice = f": another machine may not have that file; run msad in {folder or '.'} and give {file[:-3]}:NAME"
        advice = advice if file.endswith(".py") else ""
        raise ModelError(f"{name!r} is not a Python path package.module:NAME{advice}")
    path, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not (path == error.name or path.startswith(f"{error.name}.")):
            raise ModelError(f"{name!r}: {path} needs the module {error.name!r}, which is not installed") from error
        raise ModelError(
            f"{name!r}: there is no module {error.name!r}: run msad in the folder that holds it, add that folder to "
            "PYTHONPATH, or install the package, on every node"
        ) from error
    except Exception as error:  # a user's file may fail in any way; it is his error, not a traceback of ours
        last = traceback.extract_tb(error.__traceback__)[-1]
        at = f" ({last.filename}, line {last.lineno})" * (not isinstance(error, SyntaxError))  # whose text says it
        raise ModelError(f"{name!r}: importing {path} failed: {type(error).__name__}: {error}{at}") from error
    if not hasattr(module, attribute):
        found = [key for key, value in vars(module).items() if not key.startswith("_") and isinstance(value, wanted)]
        raise ModelError(f"{name!r}: {path} has no {attribute!r}{did_you_mean(attribute, found)}")
    return getattr(module, attribute)


@functools.cache
def named_entry_points(group: str) -> dict[str, tuple[EntryPoint, ...]]:
    """Return the entry points of a group by name; more than one under a name is a clash for the caller to refuse."""
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for point in entry_points(group=group):
        others = found.get(point.name, ())
        if all(point.value != other.value for other in others):  # a package found twice on the path is one
            found[point.name] = (*others, point)
    return found


def described(point: EntryPoint) -> str:
    """Return where an entry point comes from, e.g. `my-detectors 1.2 (my_detectors.knn:Knn)`."""
    package = f"{point.dist.name} {point.dist.version}" if point.dist else "a package"
    return f"{package} ({point.value})"
