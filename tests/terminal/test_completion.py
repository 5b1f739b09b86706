"""What Tab offers, and that it costs no heavy import."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from click.shell_completion import BashComplete

from msad.models.registry import architectures
from msad.terminal import cli
from msad.tracking.store import open_experiment

REPOSITORY = Path(__file__).parents[2]


def offered(*words: str) -> list[str]:
    """Return what is offered for the last word."""
    complete = BashComplete(cli.msad, {}, "msad", "_MSAD_COMPLETE")
    return [item.value for item in complete.get_completions(list(words[:-1]), words[-1]) if item.type == "plain"]


def test_architectures_are_offered_by_their_beginning_and_after_a_comma():
    assert set(offered("search", "--architectures", "")) >= set(architectures())
    assert offered("train", "--architectures", "mul") == ["multiscale", "multiscale_segmenter"]
    assert offered("search", "--architectures", "baseline,multiscale,f") == [
        f"baseline,multiscale,feature_{name}" for name in ("ensemble", "memory", "pyramid")
    ]
    assert "baseline,baseline" not in offered("search", "--architectures", "baseline,")


def test_architectures_of_installed_packages_are_offered_too(monkeypatch):
    brought = [EntryPoint("memory_bank", "somewhere:MemoryBank", "msad.architectures")]
    monkeypatch.setattr("msad.terminal.completion.entry_points", lambda group: brought)
    assert offered("search", "--architectures", "m") == ["memory_bank", "multiscale", "multiscale_segmenter"]


def test_categories_are_those_of_the_dataset_given(demo, category):
    assert offered("search", "--dataset", str(demo), "--categories", category[:2]) == [category]
    assert offered("search", "--categories", "") == []
    assert offered("search", "--dataset", "/nowhere", "--categories", "") == []


def test_sweeps_of_the_storage_folder_are_offered_for_resume(tmp_path, monkeypatch):
    for name in ("first", "second"):
        (tmp_path / "sweeps" / name).mkdir(parents=True)
        (tmp_path / "sweeps" / name / "sweep.yaml").touch()
    (tmp_path / "sweeps" / "fire").mkdir()
    monkeypatch.chdir(tmp_path)
    assert offered("search", "--resume", "fi") == ["first"]
    assert offered("search", "--storage", str(tmp_path / "other"), "--resume", "") == []


def test_tracked_sweeps_and_registered_models_are_offered_from_the_database(client, uri, tmp_path):
    open_experiment(client, "autumn", uri, "a")
    run = client.create_run(client.get_experiment_by_name("autumn").experiment_id)
    client.create_registered_model("msad-gear")
    client.create_model_version("msad-gear", "somewhere", run.info.run_id)
    client.set_registered_model_alias("msad-gear", "champion", "1")
    assert offered("compare", "--tracking-uri", uri, "") == ["autumn"]
    assert offered("pull", "--tracking-uri", uri, "g") == ["gear@champion"]
    assert offered("predict", "--tracking-uri", uri, "gear") == ["gear@champion"]
    assert offered("compare", "--tracking-uri", "http://nobody.example:5000", "") == []  # a server is not waited for


def test_missing_database_offers_nothing_and_is_not_created(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert offered("compare", "") == [] and not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", ["msad search --architectures mul", "msad compare f", "msad search --resume f"])
def test_completion_loads_none_of_the_heavy_packages(tmp_path, words):
    code = (
        "import sys, atexit; sys.argv = ['msad']\n"
        "heavy = {'torch', 'ray', 'mlflow', 'optuna', 'pandas', 'numpy', 'rich'}\n"
        "atexit.register(lambda: print('loaded:', *(heavy & set(sys.modules))))\n"
        "from msad.terminal.cli import main; main()"
    )
    variables = {"_MSAD_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    environment = {**os.environ, **variables, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "loaded:", done.stderr
    assert done.returncode == 0


def test_completion_script_is_made_by_the_documented_line():
    for shell in ("bash", "zsh", "fish"):
        code = "import sys; sys.argv = ['msad']; from msad.terminal.cli import main; main()"
        environment = {**os.environ, "_MSAD_COMPLETE": f"{shell}_source"}
        done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True)
        assert b"_MSAD_COMPLETE" in done.stdout, (shell, done.stderr)
