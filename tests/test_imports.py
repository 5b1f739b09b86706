"""What is imported when: which parts work without Ray and MLflow, and what costs nothing until it is used."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
HEAVY = {"ray", "mlflow", "optuna"}
# What a machine with torch and numpy but without Ray and MLflow must be able to import.
WITHOUT_RAY = [
    *(
        ".".join(("msad", *path.relative_to(REPOSITORY).with_suffix("").parts)).replace(".orchestrator", "")
        for folder in ("models", "data_io", "orchestrator/training", "orchestrator/bundle")
        for path in (REPOSITORY / folder).rglob("[a-z]*.py")
        if path.stem != "anomalib_training"
    ),
    "msad.cluster.workers.job_worker",
]


def test_test_split_is_opened_by_evaluation_alone():
    users = [
        path.relative_to(REPOSITORY).as_posix()
        for folder in ("orchestrator", "models", "data_io", "search_spaces")
        for path in (REPOSITORY / folder).rglob("*.py")
        if any(
            isinstance(node, ast.ImportFrom) and node.module == "msad.data_io.test_split"
            for node in ast.walk(ast.parse(path.read_text()))
        )
    ]
    assert users == ["orchestrator/bundle/evaluation.py"]


def test_training_side_imports_where_ray_and_mlflow_are_missing():
    code = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
import importlib
for name in {WITHOUT_RAY!r}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_command_line_helps_without_loading_heavy_packages():
    code = """
import sys
from click.testing import CliRunner
from msad.terminal.cli import msad
assert CliRunner().invoke(msad, ["search", "--help"]).exit_code == 0
print(sorted({"ray", "mlflow", "torch", "optuna", "pandas"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_training_loads_nothing_that_takes_longer_to_load_than_a_short_trial():
    code = """
import sys
import msad.training.loop
print(sorted({"torchvision", "torch._dynamo", "sklearn", "matplotlib", "ray", "mlflow", "optuna"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_leaderboard_is_read_without_loading_what_trains(tmp_path):
    store = f"sqlite:///{tmp_path}/mlflow.db"
    code = f"""
import sys
import mlflow
from msad.tracking.compare import leaderboard
from msad.errors import TrackingError
mlflow.set_tracking_uri({store!r})
mlflow.create_experiment("no sweep")
try:
    leaderboard(None, {store!r})
except TrackingError as error:
    assert "holds no sweep yet" in str(error)
print(sorted({{"ray", "torch", "optuna"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_reports_of_use_are_off_before_any_library_is_imported():
    code = "import sys, os, msad; print(os.environ['RAY_USAGE_STATS_ENABLED'], {'ray', 'mlflow'} & {*sys.modules})"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_USAGE_STATS_ENABLED"}
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "0 set()", done.stdout + done.stderr


def test_windows_is_refused_in_words_and_not_by_a_missing_module():
    patched = "import sys, click, msad.terminal.cli; sys.platform = 'win32'; "
    shown = {}
    for words in ("msad.terminal.cli.main()", "import msad.data_io.cache"):
        done = subprocess.run([sys.executable, "-c", patched + words], cwd=REPOSITORY, capture_output=True, text=True)
        shown[words] = done.returncode, done.stderr.splitlines()[-1], done.stdout
    code, line, output = shown["msad.terminal.cli.main()"]
    assert code == 2 and not output
    assert re.fullmatch(r"error: msad runs on Linux and macOS.*WSL 2.*`msad export`.*", line)
    assert shown["import msad.data_io.cache"][1].startswith("ImportError: msad runs on Linux and macOS")
