"""The house: which room may import which, what each may know, and no circle, imports inside of functions included."""

from __future__ import annotations

import ast
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
FOLDERS = {
    "msad": "orchestrator",
    "msad.data_io": "data_io",
    "msad.models": "models",
    "msad.search_spaces": "search_spaces",
}
# From bottom to top. "" is what lies beside the rooms, in `orchestrator/` itself; "msad" the package as users see it.
ROOMS = (
    *("data_io", "models", "search_spaces"),
    *("", "training", "search", "bundle", "pictures", "tracking", "cluster", "report", "sweep", "terminal", "msad"),
)
# The libraries below know nothing of one another, but for what is named here.
LIBRARIES = {"data_io": set(), "models": set(), "search_spaces": {"models"}}
KNOWN_TO = {
    "click": {"terminal"},
    "matplotlib": {"bundle", "pictures"},  # of bundles the colours of a map
    "mlflow": {"tracking"},
    "optuna": {"search", "search_spaces"},
    "ray": {"cluster"},
    "torch": {"bundle", "cluster", "models", "training"},
}


def modules() -> dict[str, Path]:
    """Return every file of the package by the name that it is imported by."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in (REPOSITORY / folder).rglob("*.py"):
            parts = path.relative_to(REPOSITORY / folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """Return what a file imports, wherever in it: our modules by their whole name, of others the package."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            names |= {
                whole if (whole := f"{node.module}.{alias.name}") in known else node.module for alias in node.names
            }
    return {name if name.partition(".")[0] == "msad" else name.partition(".")[0] for name in names}


def room(module: str) -> str:
    """Return the room of one of our modules."""
    first, _, rest = module.removeprefix("msad.").partition(".")
    if module in ("msad", "msad.__main__"):
        return "msad"
    return first if first in ROOMS and (rest or first in LIBRARIES or module != f"msad.{first}") else ""


MODULES = modules()
IMPORTS = {module: imports(path, MODULES) for module, path in MODULES.items()}


def test_imports_point_downwards_only():
    upwards = {
        (module, target)
        for module, targets in IMPORTS.items()
        for target in targets & MODULES.keys()
        if ROOMS.index(room(target)) > ROOMS.index(room(module))
    }
    assert not upwards


def test_libraries_know_nothing_of_one_another():
    found = {
        (module, target)
        for module, targets in IMPORTS.items()
        if (own := room(module)) in LIBRARIES
        for target in targets & MODULES.keys()
        if room(target) not in {own, *LIBRARIES[own]}
    }
    assert not found


def test_no_modules_import_each_other_in_a_circle():
    graph = {module: (targets & MODULES.keys()) - {module} for module, targets in IMPORTS.items()}
    TopologicalSorter(graph).prepare()  # CycleError names the modules


def test_each_room_knows_its_own_library_alone():
    found = {
        (module, library)
        for module, targets in IMPORTS.items()
        for library in targets & KNOWN_TO.keys()
        if room(module) not in KNOWN_TO[library]
    }
    assert not found


def test_installed_package_has_every_folder_under_one_name():
    setup = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert setup["package-dir"] == FOLDERS
    assert sorted(setup["packages"]) == sorted(name for name, path in MODULES.items() if path.name == "__init__.py")
    assert all(path.with_name("__init__.py").is_file() for path in MODULES.values())
