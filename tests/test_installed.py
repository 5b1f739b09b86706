"""The built wheel, installed into an environment of its own and used where somebody else's folders have our names."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import venv
import zipfile
from pathlib import Path

import pytest

from msad.code_version import FOLDERS

REPOSITORY = Path(__file__).parent.parent
SMALL = (
    *("--trials", "1", "--epochs", "1", "--image-size", "32", "--cpus-per-trial", "1"),
    *("--set", "model/width=8"),
)


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """The folder of an environment that has the wheel, and by a `.pth` file all that it needs of this one's."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (site / "others.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    words = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--no-deps", "--quiet"]
    subprocess.run([*map(str, words), "--no-index", "--ignore-installed", str(wheel)], check=True)
    return folder


@pytest.fixture(scope="module")
def work(environment, demo, tmp_path_factory):
    """A user's folder: `models/`, with a detector of his, `data_io/`, `tests/`, and a detector that is installed."""
    folder = tmp_path_factory.mktemp("work")
    page = (REPOSITORY / "docs" / "extending.md").read_text()
    detector = re.search(r"```python\n# file: my_detector.py\n(.*?)```", page, re.DOTALL)[1]
    for name in ("models", "data_io", "tests", "orchestrator"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("OWNER = 'somebody else'\n")
    (folder / "models" / "mine.py").write_text(detector)
    site = next(environment.glob("lib/python*/site-packages"))
    (site / "their_detectors.py").write_text(detector)
    described = site / "their_detectors-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: their-detectors\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text("[msad.architectures]\ntheirs = their_detectors:MyDetector\n")
    shutil.copytree(demo, folder / "demo")
    return folder


@pytest.fixture(scope="module")
def msad(environment, work):
    """Return a function that runs the installed command in the user's folder and returns what it prints."""
    unwanted = ("MLFLOW_", "PYTHON", "RAY_", "VIRTUAL_ENV")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}

    def msad(*words, command=("msad",)):
        program = environment / "bin" / command[0]
        done = subprocess.run(
            [program, *command[1:], *words], cwd=work, env=variables, capture_output=True, text=True, timeout=500
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return msad


def test_wheel_has_one_name_and_all_files_of_the_package(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"msad"}
    for folder, place in zip(FOLDERS, ("msad", "msad/models", "msad/data_io", "msad/search_spaces"), strict=True):
        files = [path for path in (REPOSITORY / folder).rglob("*") if path.suffix in (".py", ".c", ".h", ".html")]
        assert {f"{place}/{path.relative_to(REPOSITORY / folder).as_posix()}" for path in files} <= names


def test_nothing_else_of_ours_can_be_imported(environment, tmp_path):
    code = """
        import importlib.util, msad
        names = ("orchestrator", "models", "data_io", "search_spaces", "tests", "benchmarks")
        print(msad.__file__, *filter(importlib.util.find_spec, names))
    """
    words = [environment / "bin" / "python", "-c", textwrap.dedent(code)]
    done = subprocess.run(words, cwd=tmp_path, env={}, capture_output=True, text=True)
    (found,) = done.stdout.split()
    assert Path(found).is_relative_to(environment), done.stderr


def test_search_pull_and_predict_beside_folders_of_our_names(msad, work):
    architectures = ("models.mine:MyDetector", "theirs")
    sweep = ("--dataset", "demo", "--categories", "brick", "--architectures", ",".join(architectures), "--name", "own")
    msad("search", *sweep, *SMALL)
    rows = {row["architecture"]: row for row in json.loads(msad("compare", "own", "--json", "-"))}
    assert set(rows) == set(architectures)
    assert all(row["image_auroc"] is not None for row in rows.values()), rows
    msad("pull", rows["theirs"]["run_id"], "--to", "pulled")
    msad("predict", "pulled", "demo/brick/test", "--out", "predictions", "--device", "cpu")
    assert (work / "predictions" / "scores.csv").is_file()
    code = """
        import models, data_io, tests
        import msad
        from msad.models.registry import use
        assert models.OWNER == data_io.OWNER == tests.OWNER == "somebody else"
        use("models.mine:MyDetector")
        image = sorted(__import__("pathlib").Path("demo/brick/test").rglob("*.png"))[0]
        for name in ("pulled", RUN):
            print(type(msad.load(name, device="cpu").predict(image).score).__name__)
    """
    run = repr(rows["models.mine:MyDetector"]["run_id"])
    assert msad(textwrap.dedent(code).replace("RUN", run), command=("python", "-c")).split() == ["float", "float"]
