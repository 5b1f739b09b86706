"""Names to architectures: those of this package, those that installed packages bring, and a user's own classes.

To add one here: write its file, decorate its class with `register`, list the file in `_FILES`. From outside:

- `anomalib:NAME` is a detector of anomalib (`msad.models.anomalib_peer`);
- an installed package names its class in the entry-point group `msad.architectures`;
- a class anywhere is named by its Python path `package.module:Class`, once `use` or the variable `MSAD_ARCHITECTURES`
  has said that its module may be imported. A name read from a file, a bundle's above all, imports no code by itself.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
from collections.abc import Callable
from typing import Any

from torch import nn

from msad.models.anomalib_peer import PREFIX, peer_class, version
from msad.models.base import AnomalyModel
from msad.models.errors import ModelError, did_you_mean
from msad.models.plugins import described, is_python_path, load_python_path, named_entry_points

GROUP = "msad.architectures"
ALLOWED = "MSAD_ARCHITECTURES"
"""Environment variable: Python paths, separated by commas, that may be imported in this process."""

_FILES = ("baseline", "feature_ensemble", "feature_memory", "feature_pyramid", "multiscale", "multiscale_segmenter")
_BUILDERS: dict[str, type[AnomalyModel]] = {}
_OWN: dict[str, type[AnomalyModel]] = {}


def register(name: str) -> Callable[[type[AnomalyModel]], type[AnomalyModel]]:
    """Return a class decorator that makes an architecture known under `name`."""

    def add(architecture: type[AnomalyModel]) -> type[AnomalyModel]:
        if _BUILDERS.setdefault(name, architecture) is not architecture:
            raise ModelError(f"architecture {name!r} is registered twice, by {_BUILDERS[name]} and {architecture}")
        return architecture

    return add


def architectures() -> tuple[str, ...]:
    """Return every architecture that has a name of its own, sorted: this package's and those of installed packages."""
    return tuple(sorted({*_built_in(), *named_entry_points(GROUP)}))


def architecture(name: str) -> type[AnomalyModel]:
    """Return the class of a name.

    Raises
    ------
    ModelError
        The name is unknown (the nearest is given), is claimed twice, is a Python path that nobody has allowed, or
        leads to something that is no architecture.
    """
    points = named_entry_points(GROUP).get(name, ())
    if len(points) + (name in _built_in()) > 1:
        claims = ["msad itself"] * (name in _built_in()) + sorted(described(point) for point in points)
        raise ModelError(
            f"architecture {name!r} is claimed by {' and by '.join(claims)}: rename the entry point, or uninstall one; "
            f"a class can always be named by its Python path, e.g. {points[0].value}"
        )
    if name in _BUILDERS:
        return _BUILDERS[name]
    if name.startswith(PREFIX):
        return peer_class(name)
    if name not in _OWN:
        if points:
            _own(name, points[0].value, f"the entry point {name!r} of {described(points[0])}")
        elif not is_python_path(name):
            raise ModelError(
                f"unknown architecture {name!r}{did_you_mean(name, architectures())}; "
                "one of your own is named by its Python path, e.g. my_package.my_module:MyDetector"
            )
        elif name in [allowed.strip() for allowed in os.environ.get(ALLOWED, "").split(",")]:
            use(name)
        else:
            raise ModelError(
                f"architecture {name!r} is code from outside of msad, and nobody has allowed this process to import "
                f"it: if you trust it, set {ALLOWED}={name}, or call msad.models.registry.use({name!r})"
            )
    return _OWN[name]


def use(name: str) -> type[AnomalyModel]:
    """Import and return a user's architecture, so that this process may build it; other names are left as they are.

    Only for names that a person has given: importing a module runs its code.

    Raises
    ------
    ModelError
        As `architecture`; or the module cannot be imported, or has no such class.
    """
    own = (":" in name and not name.startswith(PREFIX)) or name.endswith(".py")
    if not own or name in _OWN:
        return architecture(name)
    return _own(name, name, repr(name))


def is_own(name: str) -> bool:
    """Return whether an architecture comes from outside of this package."""
    return architecture(name).__module__.partition(".")[0] != __name__.partition(".")[0]


def provider(name: str) -> tuple[str, str] | None:
    """Return name and version of the installed package that an architecture comes from; None for any other."""
    if name.startswith(PREFIX):
        return "anomalib", version()
    points = named_entry_points(GROUP).get(name, ())
    return (points[0].dist.name, points[0].dist.version) if points and points[0].dist else None


def default_parameters(name: str) -> dict[str, Any]:
    """Return the parameters of an architecture with their defaults."""
    parameters = inspect.signature(architecture(name)).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters}


def build(name: str, **parameters: Any) -> AnomalyModel:
    """Build an architecture with freshly drawn weights.

    Parameters
    ----------
    name
        One of `architectures()`, or a Python path (see `architecture`).
    **parameters
        The architecture's own; those left out keep their defaults.

    Raises
    ------
    ModelError
        The name or a parameter is unknown (the nearest is named), or a value is out of range.
    """
    known = default_parameters(name)
    for parameter in parameters:
        if parameter not in known:
            raise ModelError(f"unknown parameter {parameter!r} of {name!r}{did_you_mean(parameter, known)}")
    return architecture(name)(**parameters)


def count_parameters(model: nn.Module) -> int:
    """Return how many numbers training changes."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _built_in() -> tuple[str, ...]:
    for file in _FILES:  # here and not at the top: those files import this one
        importlib.import_module(f"msad.models.{file}")
    return tuple(_BUILDERS)


def _own(name: str, path: str, source: str) -> type[AnomalyModel]:
    """Import a class, refuse what is no architecture, and remember it under a name."""
    if ":" not in name and not re.fullmatch(r"\w+", name):
        raise ModelError(f"{source}: an architecture's name is made of letters, digits and '_', so that IDs stay clear")
    try:
        found = load_python_path(path, wanted=type(AnomalyModel))
    except ModelError as error:
        raise ModelError(f"architecture {source}: {error}") from error
    if not isinstance(found, type) or not issubclass(found, AnomalyModel):
        raise ModelError(f"architecture {source} is {found!r}, not a class derived from msad.models.base.AnomalyModel")
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    missing += [name for name in ("loss_terms", "default_loss_weights", "map_names") if not hasattr(found, name)]
    if missing:
        raise ModelError(f"architecture {source} lacks {', '.join(missing)}: see msad.models.base.AnomalyModel")
    return _OWN.setdefault(name, found)
