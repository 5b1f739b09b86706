"""The commands as a user meets them: examples, exit codes, and one message instead of a traceback."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from msad.terminal import cli

REPOSITORY = Path(__file__).parents[2]


def commands(group: click.Group, words: tuple[str, ...] = ()):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name), command


COMMANDS = dict(commands(cli.msad))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_of_every_command_has_an_example_that_it_understands(words):
    result = CliRunner().invoke(cli.msad, [*words, "--help"])
    assert result.exit_code == 0
    examples = re.findall(rf"^ *(?:Example: )?(msad {' '.join(words)} .+)$", result.output, re.MULTILINE)
    assert examples, result.output
    for example in examples:
        arguments = shlex.split(example)[1 + len(words) :]
        COMMANDS[words].make_context(words[-1], arguments)  # parses it, without running it


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_option_of_every_command_is_explained(words):
    options = [option for option in COMMANDS[words].params if isinstance(option, click.Option)]
    bare = [option.opts[0] for option in options if not option.help and not option.show_default]
    assert not bare


def test_help_loads_none_of_the_heavy_packages():
    code = (
        "import sys; sys.argv = ['msad', 'search', '--help']; from msad.terminal.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print(*({'torch', 'ray', 'mlflow', 'optuna', 'pandas'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "", "loaded by --help"


def test_output_into_a_pipe_that_is_closed_is_no_error_message(demo):
    command = f"{sys.executable} -m msad data check {demo} | true"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True)
    assert result.stderr == ""


def test_module_run_as_a_program_ends_with_the_exit_code(tmp_path):
    command = [sys.executable, "-m", "msad", "search", "--resume", "nothing", "--storage", str(tmp_path)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert result.stderr.startswith("error: no sweep named 'nothing'") and str(tmp_path) in result.stderr


@pytest.mark.parametrize("command", ["search", "train"])
def test_unknown_category_is_one_line_with_the_nearest_name(refused, demo, category, command):
    message = refused(command, "--dataset", demo, "--categories", f"{category}z")
    assert message.startswith("error: ") and len(message.splitlines()) == 1
    assert f"{category}z" in message and f"'{category}'" in message.replace('"', "'")


def test_unknown_architecture_is_one_line_with_the_nearest_name(refused, demo):
    message = refused("search", "--dataset", demo, "--architectures", "baseline,multiscal")
    assert len(message.splitlines()) == 1 and "'multiscal'; did you mean 'multiscale'?" in message


def test_missing_dataset_is_one_line_with_its_path(refused, tmp_path):
    message = refused("search", "--dataset", tmp_path / "nowhere")
    assert len(message.splitlines()) == 1 and str(tmp_path / "nowhere") in message


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("model/base_width", "expected PATH=VALUE"),
        ("model/base_widht=8", "base_width"),
        ("learning_rat=0.1", "did you mean 'learning_rate'"),
        ("learning_rate=-1", "learning_rate is -1"),
        ("learning_rate=fast", "learning_rate is 'fast'; it must be a number"),
        ("epochs=2.5", "epochs is 2.5; it must be a whole number"),
        ("modle/depth=3", "model"),
        ("model/skip=[concat", "model/skip"),
    ],
)
def test_bad_setting_is_refused_by_name(refused, demo, setting, expected):
    message = refused("train", "--dataset", demo, "--architectures", "multiscale", "--image-size", 64, "--set", setting)
    assert expected in message


def test_several_mistakes_are_all_named_at_once(refused, demo):
    message = refused("search", "--dataset", demo, "--trials", -1, "--objective", "best", "--name", "a/b")
    assert all(f"\n{word}: " in f"\n{message.removeprefix('error: ')}" for word in ("trials", "objective", "name"))


def test_image_size_that_does_not_suit_is_refused_with_the_nearest(refused, demo):
    assert "nearest is 64" in refused("search", "--dataset", demo, "--image-size", 65)


def test_resume_of_a_sweep_that_is_not_there_names_the_nearest(refused, tmp_path):
    (tmp_path / "sweeps" / "first").mkdir(parents=True)
    (tmp_path / "sweeps" / "first" / "sweep.yaml").write_text("name: first\n")
    assert refused("search", "--resume", "frist") == "error: no sweep named 'frist'; did you mean 'first'?"


def test_name_of_a_sweep_that_exists_is_refused(refused, demo, tmp_path):
    (tmp_path / "sweeps" / "first").mkdir(parents=True)
    (tmp_path / "sweeps" / "first" / "sweep.yaml").write_text("name: first\n")
    assert "--resume first" in refused("search", "--dataset", demo, "--name", "first")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "no such configuration file"),
        ("a: [1", "not valid YAML"),
        ("- a\n", "`key: value` lines, found list"),
        ("epoch: 3\n", "did you mean 'epochs'"),
        ("resources: 3\n", "resources"),
    ],
)
def test_bad_configuration_file_is_refused(refused, demo, tmp_path, text, expected):
    file = tmp_path / "sweep.yaml"
    if text is not None:
        file.write_text(text)
    assert expected in refused("search", file, "--dataset", demo, "--categories", "refused anyway")


def test_options_are_laid_over_the_configuration_file(tmp_path, demo, monkeypatch):
    file = tmp_path / "sweep.yaml"
    file.write_text(
        f"name: a\ndataset: {demo}\narchitectures: [baseline]\nepochs: 9\ntrials: 3\nfinal_seeds: 2\n"
        "resources: {cpus: 2, concurrency: 4}\n"
        "parameters: {learning_rate: 1e-3, weight_decay: 0.01, model/depth: 3}\n"
    )
    seen = []
    monkeypatch.setattr("msad.sweep.launch.start", lambda config: seen.append(config) or exit_with_nothing())
    words = [
        "search",
        str(file),
        "--epochs",
        "5",
        "--concurrency",
        "2",
        "--report-trials",
        "--latency-budget",
        "20",
        "--set",
        "model/depth=4",
        "--set",
        "weight_decay=1e-4",
    ]
    CliRunner().invoke(cli.msad, words)
    [config] = seen
    assert (config.name, config.epochs, config.trials) == ("a", 5, 3)
    assert (config.latency_budget, config.latency_device) == (20, None)
    assert (config.report_trials, config.final_seeds, config.batch_size) == (True, 2, None)
    assert (config.resources.cpus, config.resources.concurrency) == (2, 2)
    assert config.parameters == {"learning_rate": 1e-3, "weight_decay": 1e-4, "model/depth": 4}


def test_config_show_prints_what_a_search_would_run_and_is_a_configuration_itself(msad, demo, category, tmp_path):
    words = ("--dataset", demo, "--categories", category, "--architectures", "baseline,feature_pyramid", "--trials", 4)
    code, out, err = msad("config", "show", *words, "--set", "model/base_width=8", "--name", "shown")
    assert code == 0 and err == "" and sorted(path.name for path in tmp_path.iterdir()) == []
    settings, derived = yaml.safe_load_all(out)
    assert (settings["name"], settings["trials"], settings["categories"]) == ("shown", 4, [category])
    baseline, pyramid = (derived["studies"][name] for name in ("baseline", "feature_pyramid"))
    assert (baseline["job"]["epochs"], baseline["job"]["model"]["base_width"]) == (300, 8)
    assert pyramid["job"]["batch_size"] == 16 and pyramid["job"]["loss_weights"]["focal"] == 10.0
    assert "model/base_width" not in baseline["searched"]
    assert baseline["searched"]["model/depth"] == {"low": 3, "high": 4}
    assert pyramid["searched"]["learning_rate"] == {"low": 5e-4, "high": 5e-3, "log": True}
    assert all(len(line) <= 80 for line in out.partition("---\n")[2].splitlines())
    (tmp_path / "shown.yaml").write_text(out)
    code, again, _ = msad("config", "show", tmp_path / "shown.yaml")
    assert code == 0 and again == out
    code, text, _ = msad("config", "show", tmp_path / "shown.yaml", "--trials", 0, "--json", "-")
    shown = json.loads(text)
    assert shown["settings"] == {**settings, "trials": 0} and shown["studies"]["baseline"]["searched"] == {}


def test_config_show_without_a_dataset_makes_none_and_names_one_that_is_missing(msad, tmp_path, monkeypatch):
    monkeypatch.setenv("MSAD_CACHE", str(tmp_path / "cache"))
    assert msad("config", "show")[::2] == (0, "")
    code, _, err = msad("config", "show", "--dataset", "nowhere")
    assert code == 0 and "nowhere: no such folder" in err
    assert not (tmp_path / "cache").exists()


def test_config_show_refuses_what_a_search_would(refused, demo):
    assert "nearest is 64" in refused("config", "show", "--image-size", 65)
    words = ("--architectures", "feature_pyramid", "--set", "model/widht=8")
    assert "did you mean 'model/width'" in refused("config", "show", *words)
    assert "no category" in refused("config", "show", "--dataset", demo, "--categories", "bolts")


def exit_with_nothing():
    raise click.Abort


def test_tracking_store_that_cannot_be_opened_ends_a_search_before_it_starts(msad, demo, category, tmp_path):
    store = tmp_path / "mlflow.db"
    store.write_text("no database\n" * 100)
    words = ("search", "--dataset", demo, "--categories", category, "--image-size", 64, "--name", "first")
    code, _, err = msad(*words, "--tracking-uri", f"sqlite:///{store}")
    assert code == 2 and "is no SQLite database" in err and str(store) in err and "Traceback" not in err
    assert not (tmp_path / "sweeps").exists()


def test_predict_scores_a_folder_continues_it_and_is_1_where_an_image_is_corrupt(
    msad, bundle, demo, category, tmp_path
):
    model, images, out_folder = bundle.save(tmp_path / "model"), tmp_path / "images", tmp_path / "out"
    shutil.copytree(demo / category / "test" / "good", images)
    count = len(list(images.iterdir()))
    words = ("predict", model, images, "--out", out_folder, "--maps", "png", "--device", "cpu")
    code, out, err = msad(*words)
    assert code == 0 and out.startswith(f"{count} image(s) scored, ") and err == ""
    assert len(list((out_folder / "maps").iterdir())) == len(list((out_folder / "heatmaps").iterdir())) == count
    (images / "zz.png").write_bytes(b"nothing")
    code, out, _ = msad(*words)
    assert code == 1 and f"{count} image(s) scored ({count} of them earlier)" in out
    assert f"skipped {images / 'zz.png'}: cannot be decoded" in out and "1 skipped; see" in out
    code, out, _ = msad(*words, "--json", "-")
    counts = json.loads(out)
    assert code == 1 and (counts["scored"], counts["earlier"], list(counts["skipped"])) == (
        count, count, [str(images / "zz.png")],
    )  # fmt: skip
    code, _, err = msad(*words, "--threshold", "1000")
    assert code == 2 and "threshold" in err and "--overwrite" in err and "another --out" in err
    code, out, _ = msad(*words, "--threshold", "1000", "--overwrite", "--no-heatmaps")
    assert code == 1 and f"{count} image(s) scored, 0 anomalous" in out
    assert not any((out_folder / "heatmaps").iterdir())
    assert (out_folder / "regions.json").is_file()
    code, out, _ = msad(*words, "--overwrite", "--pixel-threshold", "1000", "--smallest-area", "5")
    assert code == 1 and "0 region(s) in their maps" in out
    code, _, err = msad(*words, "--smallest-area", "0")
    assert code == 2 and "--smallest-area" in err


def test_evaluate_prints_the_figures_and_writes_the_pictures(msad, bundle, demo, tmp_path):
    code, out, _ = msad("evaluate", bundle.save(tmp_path / "model"), demo, "--out", tmp_path / "report")
    assert code == 0 and re.search(r"^image_auroc +[01]\.\d{4} +[01]\.\d{3} to [01]\.\d{3}", out, re.MULTILINE)
    code, out, _ = msad("evaluate", tmp_path / "model", demo, "--json", "-")
    figures = json.loads(out)
    assert code == 0 and 0 <= figures["metrics"]["image_auroc"] <= 1
    assert all(part["images"] == 3 for part in figures["per_defect_type"].values())
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert {"scores.csv", "regions.csv", "per_defect_type.csv"} <= names
    assert any(name.endswith(".png") for name in names)


@pytest.mark.parametrize(
    "words",
    [
        ("predict", "./nowhere", "image.png"),
        ("evaluate", "./nowhere", "data"),
        ("pull", "0123", "--to", "full"),
        ("pull", "0123"),
        ("predict",),
        ("serch",),
    ],
    ids=" ".join,
)
def test_model_or_word_that_is_not_there_is_refused(refused, tmp_path, words):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    assert refused(*words)


def test_compare_of_an_unknown_sweep_is_refused(msad, tmp_path):
    code, out, err = msad("compare", "first", "--tracking-uri", f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert (code, out) == (2, "") and "no such database" in err and str(tmp_path) in err


def test_output_that_cannot_be_written_is_a_message_with_its_path(msad, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = msad("data", "demo", tmp_path / "file" / "demo")
    assert code in (1, 2) and "file" in err and "Traceback" not in err


def test_password_on_the_command_line_goes_into_the_environment_of_a_new_beginning(monkeypatch):
    begun, address = [], "http://ada:a-secret@host:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.setattr("os.execv", lambda program, words: begun.append(words[1:]))
    cli._without_passwords(["python", "-m", "msad", "compare", "--tracking-uri", "http://host:5000"])
    assert not begun
    cli._without_passwords(["python", "-m", "msad", "compare", "--tracking-uri", address])
    cli._without_passwords(["python", "/usr/bin/msad", "ui", f"--tracking-uri={address}"])
    assert begun == [
        ["-m", "msad", "compare", "--tracking-uri", "http://host:5000"],
        ["/usr/bin/msad", "ui", "--tracking-uri=http://host:5000"],
    ]
    assert os.environ["MLFLOW_TRACKING_URI"] == address
