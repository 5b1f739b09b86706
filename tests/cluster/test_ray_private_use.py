"""No file but `ray_private` uses anything of Ray's that it does not promise."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.cluster.test_ray_private import OURS, imports, whole_names

INTERNAL = ("air", "autoscaler", "cloudpickle", "core", "dashboard", "train.v2", "tune.execution")  # below `ray.`
INTERNAL_NAMES = {"cloudpickle", "error_file", "pickled_error_file", "run_metadata"}


def private_uses(tree: ast.Module) -> Iterator[str]:
    """Yield what a file uses of Ray that it does not promise: modules, names, arguments and attributes."""
    names = {name for node in imports(tree) for name in whole_names(node) if name.partition(".")[0] == "ray"}
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)} | {"self", "cls"}
    for name in names:
        below = name.removeprefix("ray.")
        if "._" in name or any(below == part or below.startswith(f"{part}.") for part in INTERNAL):
            yield name
    for node in ast.walk(tree) if names else ():
        if isinstance(node, ast.Attribute) and (
            node.attr in INTERNAL_NAMES
            or (node.attr.startswith("_") and not node.attr.endswith("__") and ast.unparse(node.value) not in own)
        ):
            yield ast.unparse(node)
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith(("ray.", "tune.")):
            yield from (word.arg for word in node.keywords if (word.arg or "").startswith("_"))


def test_no_other_file_uses_what_is_private():
    assert not [(name, use) for name, tree in OURS.items() for use in private_uses(tree)]


@pytest.mark.parametrize(
    "line",
    [
        "from ray._private import state",
        "from ray import _raylet",
        "from ray.core.generated import gcs_pb2",
        "from ray.train.v2._internal.execution.controller import TrainController",
        "from ray.tune.execution import tune_controller",
        "import ray\nray.init(_temp_dir='/tmp')",
        "import ray\nray._private.worker.global_worker",
        "import ray.train\ntrainer._initialize_and_run_controller = print",
        "from ray import tune\ntrial.run_metadata.num_failures = 0",
    ],
)
def test_private_use_is_found(line):
    assert list(private_uses(ast.parse(line)))


def test_public_use_is_none():
    tree = ast.parse("import ray\nfrom ray.tune.search import Searcher\nself._search = ray.init(address='local')")
    assert not list(private_uses(tree))
