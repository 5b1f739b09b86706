"""What is private in Ray is as `ray_private` takes it to be, or a test says what has changed and who needs it."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import ray
from ray.exceptions import OutOfMemoryError, RayTaskError

from msad.cluster import connection, job, ray_private
from tests.test_rooms import MODULES, REPOSITORY

HERE = Path(ray_private.__file__)
OURS = {str(path.relative_to(REPOSITORY)): ast.parse(path.read_text()) for path in MODULES.values() if path != HERE}
VARIABLES = connection.QUIET | connection.LOOPBACK_ONLY | job.TRAIN_ENVIRONMENT
READ_FROM = ("_common", "_private", "air", "train", "tune")  # the parts of Ray that read those


def of_ray(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"ray.{module}"), name)


def passes_credentials_on() -> bool:
    # By its source: a sweep that ran in this process before has taken them out of the set.
    source = inspect.getsource(importlib.import_module("ray.tune.execution.class_cache"))
    names = of_ray("tune.execution.class_cache", "ENV_VARS_TO_PROPAGATE")
    return isinstance(names, set) and '"AWS_SECRET_ACCESS_KEY"' in source


def asks_for_lost_actors(module: str) -> bool:
    """Say whether a module asks for the kind of an error by the name that gets another value from us."""
    source = inspect.getsource(importlib.import_module(f"ray.{module}"))
    asked = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and len(node.args) == 2)
    return any(
        ast.unparse(node.func) == "isinstance" and ast.unparse(node.args[1]) == "RayActorError" for node in asked
    )


def gives_up_after_failures() -> bool:
    trial = of_ray("tune.experiment", "Trial")("direct_trial", trial_id="a", stub=True, max_failures=1)
    trial.run_metadata.num_failures = 2
    given_up = not trial.should_recover()
    ray_private.forget_failures(trial)
    return given_up and trial.should_recover()


def names_the_files_of_a_crash() -> bool:
    kind = of_ray("tune.experiment", "Trial")
    return all(isinstance(inspect.getattr_static(kind, f"{name}error_file"), property) for name in ("", "pickled_"))


def trainer(kind: type) -> Any:
    settings = {"num_workers": 1}, {"name": "a", "storage_path": "/nowhere"}
    scaling, run = (of_ray("train.v2.api.config", name) for name in ("ScalingConfig", "RunConfig"))
    return kind(print, scaling_config=scaling(**settings[0]), run_config=run(**settings[1]))


def callbacks(kind: type) -> set[str]:
    return {type(one).__name__ for one in trainer(kind)._create_default_callbacks()}


def attaches_needless_callbacks() -> bool:
    default = callbacks(of_ray("train.v2.api.data_parallel_trainer", "DataParallelTrainer"))
    needless = set(ray_private.NEEDLESS_CALLBACKS)
    return needless <= default and callbacks(ray_private.lean_trainer(controlled_here=True)) == default - needless


def runs_its_controller_by_a_method() -> bool:
    """Let the trainer hand its parts to a controller that does nothing, in place of Ray's own."""
    seen, kind = [], of_ray("train.v2.api.data_parallel_trainer", "DataParallelTrainer")

    class Watched(kind):
        def _initialize_and_run_controller(self, **parts: Any) -> Any:
            inspect.signature(of_ray("train.v2._internal.execution.controller", "TrainController")).bind(**parts)
            seen.append(parts)
            return type("Result", (), {"error": None})()

    with pytest.MonkeyPatch.context() as patch:  # what puts the function into Ray's store
        patch.setattr(importlib.import_module(kind.__module__), "ObjectRefWrapper", lambda function: function)
        trainer(Watched).fit()
    return len(seen) == 1


def has_a_controller_to_run_here() -> bool:
    kind = of_ray("train.v2._internal.execution.controller", "TrainController")
    workers = of_ray("train.v2._internal.execution.worker_group", "WorkerGroup")
    return inspect.iscoroutinefunction(kind.run) and all(
        list(inspect.signature(method).parameters) == ["self"]
        for method in (kind.run, kind.get_result, kind.get_worker_group, workers.shutdown)
    )


def lists_placement_groups() -> bool:
    state = of_ray("_private.state", "state")
    return callable(state._connect_and_get_accessor) and callable(
        of_ray("_raylet", "GlobalStateAccessor").get_placement_group_table
    )


def tells_whose_a_placement_group_is() -> bool:
    table = of_ray("core.generated.gcs_pb2", "PlacementGroupTableData")
    needed = {"placement_group_id", "state", "creator_job_id", "creator_actor_id", "creator_actor_dead"}
    return needed <= set(table.DESCRIPTOR.fields_by_name) and isinstance(table.REMOVED, int)


class Promise(NamedTuple):
    """What a function of ours takes for granted of Ray, in words, and whether it is so."""

    use: Callable[..., Any]
    words: str
    kept: Callable[[], bool]


PROMISES = [
    Promise(
        ray_private.sockets_in,
        "`ray.init` takes a folder as `_temp_dir`",
        lambda: '"_temp_dir"' in inspect.getsource(ray.init),
    ),
    Promise(
        ray_private.keep_credentials_from_trials,
        "`ray.tune.execution.class_cache.ENV_VARS_TO_PROPAGATE` is a set of variables, AWS's among them",
        passes_credentials_on,
    ),
    *(
        Promise(
            ray_private.take_lost_workers_for_lost_actors,
            f"`ray.{module}` asks of an error `isinstance(..., RayActorError)`",
            lambda module=module: asks_for_lost_actors(module),
        )
        for module in ("air.execution._internal.actor_manager", "tune.execution.tune_controller")
    ),
    Promise(
        ray_private.forget_failures,
        "`Trial.run_metadata.num_failures` counts what a trial of Tune has failed, and decides whether it goes on",
        gives_up_after_failures,
    ),
    Promise(
        ray_private.crash_of,
        "a `Trial` of Tune has `error_file` and `pickled_error_file`",
        names_the_files_of_a_crash,
    ),
    Promise(
        ray_private.lean_trainer,
        f"`DataParallelTrainer._create_default_callbacks` gives {' and '.join(ray_private.NEEDLESS_CALLBACKS)}",
        attaches_needless_callbacks,
    ),
    Promise(
        ray_private.lean_trainer,
        "`DataParallelTrainer.fit` calls `_initialize_and_run_controller` with what a `TrainController` takes",
        runs_its_controller_by_a_method,
    ),
    Promise(
        ray_private.lean_trainer,
        "a `TrainController` has a coroutine `run`, `get_result` and `get_worker_group`, whose workers `shutdown` ends",
        has_a_controller_to_run_here,
    ),
    Promise(
        ray_private.orphaned_groups,
        "`ray._private.state.state` gives an accessor with `get_placement_group_table`",
        lists_placement_groups,
    ),
    Promise(
        ray_private.orphaned_groups,
        "the table of placement groups has their state, and of their creator job, actor and whether it is dead",
        tells_whose_a_placement_group_is,
    ),
]


def broken(promise: Promise) -> str | None:
    """Return in words that Ray keeps a promise no longer, and who needs it; None where it does."""
    try:
        if promise.kept():
            return None
        how = "it is otherwise"
    except Exception as error:
        how = f"{type(error).__name__}: {error}"
    name = promise.use.__name__
    return (
        f"Ray {ray.__version__} has changed: no longer is it so that {promise.words} ({how}). "
        f"`{name}` in {HERE.name} needs that, for {', '.join(users(name))}: its docstring says what for"
    )


def users(name: str) -> list[str]:
    """Return which files import a function of `ray_private`."""
    whole = f"{ray_private.__name__}.{name}"
    return [file for file, tree in OURS.items() if any(whole in whole_names(node) for node in imports(tree))]


def imports(tree: ast.Module) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def whole_names(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [f"{node.module}.{alias.name}" for alias in node.names]


@pytest.fixture(autouse=True)
def train_v2(monkeypatch):
    monkeypatch.setenv("RAY_TRAIN_V2_ENABLED", "1")


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.words)
def test_ray_is_as_it_is_taken_to_be(promise):
    if problem := broken(promise):
        pytest.fail(problem)


@pytest.mark.parametrize("variable", VARIABLES)
def test_ray_reads_the_variables_that_it_is_set_up_by(variable):
    files = (path for part in READ_FROM for path in (Path(ray.__file__).parent / part).rglob("*.py"))
    found = any(f'"{variable}"' in path.read_text() for path in files)
    assert found, (
        f"Ray {ray.__version__} no longer reads {variable}, which cluster/connection.py or cluster/job.py sets"
    )


def test_ray_that_has_changed_is_told_with_who_needs_what(monkeypatch):
    gone = {
        "job": ("ray.train.v2.api.data_parallel_trainer.DataParallelTrainer", "_create_default_callbacks"),
        "sweep_tuner": ("ray.tune.execution.class_cache", "ENV_VARS_TO_PROPAGATE"),
        "connection": ("ray._raylet", "GlobalStateAccessor"),
    }
    for user, (owner, name) in gone.items():
        with monkeypatch.context() as patch:
            patch.delattr(f"{owner}.{name}")
            problems = [problem for promise in PROMISES if (problem := broken(promise))]
        assert problems and all(f"for orchestrator/cluster/{user}.py: " in problem for problem in problems)
        assert f"Ray {ray.__version__} has changed" in problems[0] and name in problems[0]


def test_every_function_for_what_is_private_has_a_promise_and_a_user():
    tree = ast.parse(HERE.read_text())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    promised = {promise.use.__name__ for promise in PROMISES}
    assert functions - promised == {"crash_words"}  # of whom `crash_of`'s promise tells too
    assert all(map(users, functions))


def test_trials_get_no_credentials_and_lost_workers_cost_them_an_attempt(monkeypatch):
    names = of_ray("tune.execution.class_cache", "ENV_VARS_TO_PROPAGATE")
    monkeypatch.setattr("ray.tune.execution.class_cache.ENV_VARS_TO_PROPAGATE", kept := set(names))
    for module in ("ray.air.execution._internal.actor_manager", "ray.tune.execution.tune_controller"):
        monkeypatch.setattr(f"{module}.RayActorError", None)
    ray_private.keep_credentials_from_trials()
    ray_private.take_lost_workers_for_lost_actors()
    assert kept and not any(name.startswith("AWS_") for name in kept)
    lost = OutOfMemoryError("the node was running low on memory")
    assert isinstance(lost, of_ray("tune.execution.tune_controller", "RayActorError"))


def test_crash_of_a_trial_is_read_from_its_files(tmp_path, monkeypatch):
    monkeypatch.setattr("ray.train._internal.storage._get_ray_train_session_dir", lambda: str(tmp_path))
    storage = of_ray("train._internal.storage", "StorageContext")(str(tmp_path), "experiment", trial_dir_name="a")
    trial = of_ray("tune.experiment", "Trial")("direct_trial", trial_id="a", stub=True, storage=storage)
    assert ray_private.crash_of(trial) is None and ray_private.crash_words(trial) == ""
    Path(trial.local_path).mkdir(parents=True)
    trial.handle_error(RayTaskError("train", "Traceback:\nValueError: too wide", ValueError("too wide")))
    assert isinstance(ray_private.crash_of(trial), RayTaskError) and "too wide" in ray_private.crash_words(trial)


def test_orphaned_groups_are_what_dead_actors_of_this_job_have_left(monkeypatch):
    table = of_ray("core.generated.gcs_pb2", "PlacementGroupTableData")
    ours, actor, driver = b"\x01\x00\x00\x00", b"\x07" * 16, b"\xff" * 16

    def entry(number: int, **words: Any) -> bytes:
        known = {"creator_job_id": ours, "creator_actor_id": actor, "creator_actor_dead": True, "state": table.CREATED}
        return table(placement_group_id=bytes([number]) * 18, **(known | words)).SerializeToString()

    entries = [
        entry(1),
        entry(2, creator_actor_dead=False),
        entry(3, state=table.REMOVED),
        entry(4, creator_actor_id=driver),
        entry(5, creator_job_id=b"\x02\x00\x00\x00"),
    ]
    accessor = type("Accessor", (), {"get_placement_group_table": lambda _self: entries})()
    monkeypatch.setattr("ray._private.state.state._connect_and_get_accessor", lambda: accessor)
    assert [group.id.hex() for group in ray_private.orphaned_groups(ours.hex())] == ["01" * 18]
