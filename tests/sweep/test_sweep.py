"""The whole path on a real Ray cluster and a real MLflow store: search, finals, test, compare, pull, resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from mlflow import MlflowClient

BOTH = ["--architectures", "baseline,multiscale"]
SMALL = ["--image-size", "32", "--epochs", "2", "--set", "model/base_width=4", "--set", "model/depth=2"]

# Runs the command line under an audit hook that notes every file opened for reading below the dataset, and when.
WATCHED = """
import os, sys, time
def note(event, args):
    if event == "open" and isinstance(args[0], (str, bytes, os.PathLike)):
        path = os.fspath(args[0])
        if isinstance(path, str) and path.startswith(os.environ["MSAD_WATCH"]):
            with open(os.environ["MSAD_WATCH_LOG"], "a") as log:
                log.write(f"{time.time_ns()} {path}\\n")
sys.addaudithook(note)
"""


def msad(*words: str, folder: Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """Run a command in a folder of its own, where its default MLflow store is then."""
    return subprocess.run(
        [sys.executable, "-m", "msad", *words],
        cwd=folder,
        env={**user_environment(), **(environment or {})},
        capture_output=True,
        text=True,
        timeout=500,
    )


def user_environment() -> dict[str, str]:
    """Return this process's variables without the store that MLflow, once used here, hands to its children."""
    return {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}


def runs(folder: Path, sweep: str) -> dict[str, list]:
    """Return a sweep's MLflow runs by kind."""
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(sweep)
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    kinds = ("sweep", "study", "trial", "final")
    return {kind: [run for run in found if run.data.tags["msad.kind"] == kind] for kind in kinds}


def champion(folder: Path) -> str:
    """Return the run whose model is `brick@champion`."""
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    return client.get_model_version_by_alias("msad-brick", "champion").run_id


def optuna_trials(folder: Path, sweep: str) -> dict[str, optuna.trial.FrozenTrial]:
    """Return what Optuna knows of every trial that was handed out, by its job ID."""
    storage = f"sqlite:///{folder}/sweeps/{sweep}/optuna.db"
    studies = [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]
    return {trial.user_attrs["job_id"]: trial for study in studies for trial in study.trials if trial.user_attrs}


def watched(demo: Path, folder: Path, *words: str) -> tuple[subprocess.CompletedProcess, list[tuple[int, str]]]:
    """Run a command; return its process and the dataset's files that it opened, each with the time in nanoseconds."""
    hook = folder / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(WATCHED)
    log = folder / "opened.log"
    watch = {"MSAD_WATCH": str(demo), "MSAD_WATCH_LOG": str(log)}
    path = os.pathsep.join([str(hook), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = msad(*words, folder=folder, environment={"PYTHONPATH": path, **watch})
    assert log.exists(), done.stderr
    lines = (line.partition(" ") for line in log.read_text().splitlines())
    return done, [(int(when), path) for when, _, path in lines]


@pytest.fixture(scope="module")
def swept(demo, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess, list[tuple[int, str]]]:
    """A finished sweep of 2 studies of 2 trials: its folder, its process, and the dataset files that were opened."""
    folder = tmp_path_factory.mktemp("swept")
    words = ("search", "--dataset", str(demo), "--categories", "brick", *BOTH, "--trials", "2", "--name", "first")
    return folder, *watched(demo, folder, *words, *SMALL, "--json", "outcome.json")


def test_search_ends_with_every_run_in_mlflow(swept):
    folder, done, _ = swept
    assert done.returncode == 0, done.stderr
    found = runs(folder, "first")
    assert len(found["study"]) == 2 and len(found["trial"]) == 4
    (sweep,) = found["sweep"]
    assert sweep.info.status == "FINISHED" and all(
        run.info.run_id in sweep.data.tags["mlflow.note.content"] for run in found["study"]
    )
    assert sum(run.data.tags["msad.best"] == "true" for run in found["study"]) == 1
    for run in found["trial"]:
        assert run.info.status == "FINISHED" and run.data.tags["msad.status"] == "complete"
        assert {"train/loss", "validation_score", "train/learning_rate"} <= set(run.data.metrics)
        assert run.data.params["image_size"] == "32" and run.data.params["model/base_width"] == "4"
        assert run.data.tags["mlflow.parentRunId"] in {study.info.run_id for study in found["study"]}
    for run in found["study"]:
        assert {"test_image_auroc", "test_pixel_auroc", "test_aupro_30", "validation_score"} <= set(run.data.metrics)
        assert {"pixel_threshold", "false_regions_expected", "test_false_regions"} <= set(run.data.metrics)
        assert {"test_recall_at_fpr", "test_recall_at_fpr_low", "test_target_fpr"} <= set(run.data.metrics)
        tables = {path.name for path in Path(run.info.artifact_uri.removeprefix("file://"), "test").iterdir()}
        assert tables == {"scores.csv", "regions.csv", "per_defect_type.csv"}
        assert run.data.tags["msad.best_trial"] in {trial.info.run_id for trial in found["trial"]}
        assert run.data.tags["msad.final_training"].startswith("trained again")


def test_search_opens_no_test_file_before_every_winner_is_chosen(swept, demo):
    _, _, opened = swept
    test = [when for when, path in opened if "/brick/test/" in path or "/ground_truth/" in path]
    train = [when for when, path in opened if "/brick/train/" in path]
    assert train, "the hook saw nothing"
    assert test, "the winners were never evaluated"
    assert max(train) < min(test)


def test_winner_beats_or_equals_every_trial_on_validation(swept):
    found = runs(swept[0], "first")
    for study in found["study"]:
        best = study.data.tags["msad.best_trial"]
        scores = {
            run.info.run_id: run.data.metrics["validation_score"]
            for run in found["trial"]
            if run.data.tags["msad.study"] == study.data.tags["msad.study"]
        }
        assert scores[best] == max(scores.values())


def test_search_writes_how_it_ended_and_the_leaderboard_as_json(swept):
    outcome = json.loads((swept[0] / "outcome.json").read_text())
    assert (outcome["name"], outcome["ok"], outcome["failed_studies"], outcome["undelivered"]) == ("first", True, {}, 0)
    rows = outcome["leaderboard"]
    assert {row["architecture"] for row in rows} == {"baseline", "multiscale"}
    assert all(0 <= row["validation_score"] <= 1 and row["final_seeds"] is None for row in rows)


def test_pull_says_as_json_where_the_model_is_and_what_it_is(swept, tmp_path):
    done = msad("pull", "brick@champion", "--to", str(tmp_path / "model"), "--json", "-", folder=swept[0])
    model = json.loads(done.stdout)
    best = next(row for row in json.loads((swept[0] / "outcome.json").read_text())["leaderboard"] if row["best"])
    assert (model["category"], model["image_size"], model["folder"]) == ("brick", 32, str(tmp_path / "model"))
    assert (model["architecture"], model["run_id"]) == (best["architecture"], best["run_id"])


def test_compare_lists_both_studies(swept):
    done = msad("compare", "first", "--json", "-", folder=swept[0])
    rows = json.loads(done.stdout)
    assert {(row["category"], row["architecture"]) for row in rows} == {("brick", "baseline"), ("brick", "multiscale")}
    assert sum(row["best"] for row in rows) == 1
    assert all(0 <= row["image_auroc"] <= 1 and 0 < row["image_prevalence"] < 1 for row in rows)


def test_compare_writes_a_page_with_the_pictures_of_every_search(swept):
    done = msad("compare", "first", "--html", "new/report.html", folder=swept[0])
    assert done.returncode == 0 and "report in new/report.html" in done.stderr, done.stderr
    page = (swept[0] / "new" / "report.html").read_text()
    for study in runs(swept[0], "first")["study"]:
        assert f"msad pull {study.info.run_id} --to model" in page
    assert page.count("of 2 trials in order: 2 complete.") == 2
    assert page.count("each with its ground truth outlined") == 1  # the gallery of the winner


def test_pulled_winner_predicts(swept, demo):
    folder = swept[0]
    pulled = msad("pull", "brick@champion", "--to", "model", folder=folder)
    assert pulled.returncode == 0, pulled.stderr
    done = msad("predict", "model", str(demo / "brick" / "test"), "--out", "out", folder=folder)
    assert done.returncode == 0, done.stderr
    lines = (folder / "out" / "scores.csv").read_text().splitlines()
    images = list((demo / "brick" / "test").rglob("*.png"))
    assert len(lines) == len(images) + 1
    assert len(list((folder / "out" / "heatmaps").rglob("*.png"))) == len(images)
    again = msad("pull", "brick@champion", "--to", "model", folder=folder)
    assert again.returncode == 2 and "not an empty folder" in again.stderr


def test_resume_of_a_finished_sweep_that_was_moved_changes_nothing_but_the_places(swept, tmp_path):
    folder, moved = swept[0], tmp_path / "moved"
    before = runs(folder, "first")
    folder.rename(moved)
    done = msad("search", "--resume", "first", folder=moved)
    assert done.returncode == 0, done.stderr
    assert not folder.exists(), "the old path was made anew"
    after = runs(moved, "first")
    assert all(run.info.artifact_uri.startswith(f"{moved}/mlartifacts/first/") for run in after["study"])
    moved.rename(folder)
    for kind in before:
        assert {run.info.run_id for run in before[kind]} == {run.info.run_id for run in after[kind]}
    assert all(run.info.status == "FINISHED" for run in after["study"])


@pytest.mark.slow
def test_report_on_the_selection_and_several_final_seeds(demo, tmp_path):
    words = ["search", "--dataset", str(demo), "--categories", "brick", "--architectures", "baseline", "--trials", "3"]
    asked = ["--pruner", "none", "--report-trials", "--final-seeds", "2", "--name", "reported"]
    done, opened = watched(demo, tmp_path, *words, *asked, *SMALL)
    assert done.returncode == 0, done.stderr
    jobs = tmp_path / "sweeps" / "reported" / "jobs"
    trials = [f"brick-baseline-{number:04d}" for number in range(3)]
    finals = ["brick-baseline-final", "brick-baseline-final-seed1"]

    def written() -> dict[str, int]:
        names = [f"{trial}/test_report.json" for trial in trials] + [f"{final}/test.json" for final in finals]
        return {name: (jobs / name).stat().st_mtime_ns for name in names}

    first = written()
    chosen = max((jobs / trial / "result.json").stat().st_mtime_ns for trial in trials)
    assert chosen < min(when for when, path in opened if "/test/" in path or "/ground_truth/" in path)
    assert max(first[f"{final}/test.json"] for final in finals) < min(
        first[f"{trial}/test_report.json"] for trial in trials
    )

    def check_runs() -> None:
        found = runs(tmp_path, "reported")
        (study,) = found["study"]
        assert len(found["trial"]) == 3 and len(found["final"]) == 2
        for trial in found["trial"]:
            assert trial.data.tags["msad.test_metrics"] == "reporting only, after selection"
            assert not any(name.startswith("test_") for name in trial.data.metrics)
        validation = {run.info.run_id: run.data.metrics["validation_score"] for run in found["trial"]}
        test = {run.info.run_id: run.data.metrics["report_test_image_auroc"] for run in found["trial"]}
        best = study.data.tags["msad.best_trial"]
        assert validation[best] == max(validation.values())
        shown = study.data.metrics
        assert shown["selection_gap"] == pytest.approx(max(test.values()) - test[best])
        assert shown["selection_random"] == pytest.approx(sum(test.values()) / 3) and shown["selection_trials"] == 3
        seeds = {run.data.params["seed"]: run for run in found["final"]}
        assert set(seeds) == {"0", "1"}
        assert all(run.data.tags["mlflow.parentRunId"] == study.info.run_id for run in seeds.values())
        aurocs = [seeds[seed].data.metrics["test_image_auroc"] for seed in "01"]
        assert shown["test_image_auroc"] == aurocs[0]  # the study's model is the first seed's, whatever its test figure
        assert shown["test_image_auroc_mean"] == pytest.approx(sum(aurocs) / 2)
        assert shown["test_image_auroc_sd"] == pytest.approx(abs(aurocs[0] - aurocs[1]) / 2**0.5)

    check_runs()
    selection = json.loads((jobs / finals[0] / "selection.json").read_text())
    assert [row["job_id"] for row in selection["trials"]] == trials and "aupro_30" in selection

    # As if it had been stopped in between: what is missing is made, and nothing else.
    for name in ("brick-baseline-0001/test_report.json", "brick-baseline-final-seed1/test.json"):
        (jobs / name).unlink()
    (jobs / finals[0] / "selection.json").unlink()
    again = msad("search", "--resume", "reported", folder=tmp_path)
    assert again.returncode == 0, again.stderr
    changed = [name for name, when in written().items() if when != first[name]]
    assert changed == ["brick-baseline-0001/test_report.json", "brick-baseline-final-seed1/test.json"]
    check_runs()


def test_search_under_a_taken_name_is_refused(swept, demo):
    done = msad("search", "--dataset", str(demo), "--name", "first", folder=swept[0])
    assert done.returncode == 2 and "--resume first" in done.stderr


def test_more_gpus_than_the_cluster_has_are_refused(demo, tmp_path):
    done = msad("search", "--dataset", str(demo), "--gpus-per-trial", "64", *BOTH, *SMALL, folder=tmp_path)
    assert done.returncode == 2 and "64 GPUs per trial were asked for" in done.stderr
    assert not (tmp_path / "sweeps").exists(), "a start that is refused leaves no folder"


@pytest.mark.slow  # test_faults.py always has a trial that diverges
def test_sweep_whose_trials_all_diverge_says_why_and_fails(demo, tmp_path):
    words = ["search", "--dataset", str(demo), "--categories", "brick", "--architectures", "baseline", "--trials", "1"]
    fixed = ["--set", "learning_rate=1e30", "--set", "gradient_clip=0", "--set", "schedule=constant"]
    # On machines without a compiler, which is said once.
    done = msad(*words, "--name", "nan", *SMALL, *fixed, folder=tmp_path, environment={"CC": "no-such-compiler"})
    assert done.returncode == 1
    assert done.stderr.count("about 1.1 times as long as it could: no C compiler: no-such-compiler") == 1
    assert "brick/baseline has no result" in done.stderr and "in epoch 1 at learning_rate 1e+30" in done.stderr
    (trial,) = runs(tmp_path, "nan")["trial"]
    assert trial.info.status == "FAILED" and "not finite" in trial.data.tags["msad.reason"]


def test_train_executor_runs_every_trial_as_a_ray_train_job_and_its_winner_meets_the_champion(swept, demo):
    tmp_path, first = swept[0], champion(swept[0])
    words = ["search", "--dataset", str(demo), "--categories", "brick", "--architectures", "baseline", "--trials", "1"]
    done = msad(*words, "--executor", "train", "--seed", "1", "--name", "nested", *SMALL, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = runs(tmp_path, "nested")
    (trial,), (study,) = found["trial"], found["study"]
    assert trial.info.status == study.info.status == "FINISHED"
    # Its model is the winner's; nothing is trained a second time.
    assert trial.data.metrics["validation_score"] == study.data.metrics["validation_score"]
    assert study.data.tags["msad.final_training"].startswith("none: the model of brick-baseline-0000")
    jobs = tmp_path / "sweeps" / "nested" / "jobs"
    weights = [jobs / name / "bundle" / "model.safetensors" for name in ("brick-baseline-0000", "brick-baseline-final")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert json.loads((jobs / "brick-baseline-final" / "bundle" / "bundle.json").read_text())["provenance"]["trial"]
    assert not list((tmp_path / "sweeps" / "nested" / "train").iterdir()), "checkpoints of finished jobs were left"
    # On another split its score says nothing, and of so few images too few are new to the champion: it is offered.
    assert "good images that the new model was validated on" in done.stderr and champion(tmp_path) == first
    assert f"To take it: msad promote {study.info.run_id}" in done.stderr


@pytest.mark.slow  # of this kind test_windows.py and test_faults.py always run
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_sweep_stopped_in_the_middle_resumes_without_a_duplicate(demo, tmp_path, signal_number):
    words = [
        "search",
        "--dataset",
        str(demo),
        "--categories",
        "brick",
        "--trials",
        "2",
        "--name",
        "killed",
        *BOTH,
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "msad", *words, *SMALL],
        cwd=tmp_path,
        env=user_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    jobs = tmp_path / "sweeps" / "killed" / "jobs"
    deadline = time.monotonic() + 240
    while len(list(jobs.glob("*/result.json"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.1)
    finished = {path.parent.name: path.stat().st_mtime_ns for path in jobs.glob("*/result.json")}
    process.send_signal(signal_number)
    output, _ = process.communicate(timeout=120)
    if signal_number == signal.SIGINT:
        assert process.returncode == 130 and "--resume killed" in output

    known = optuna_trials(tmp_path, "killed")
    done = msad("search", "--resume", "killed", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = runs(tmp_path, "killed")
    assert len(found["study"]) == 2 and len(found["trial"]) == 4
    names = [run.data.tags["msad.trial_id"] for run in found["study"] + found["trial"]]
    assert len(set(names)) == len(names)
    assert all(run.info.status in ("FINISHED", "KILLED") for run in found["trial"])
    # What had ended before was not trained again, and nothing that was known of a trial has changed or is missing.
    assert all((jobs / name / "result.json").stat().st_mtime_ns == when for name, when in finished.items())
    trials = optuna_trials(tmp_path, "killed")
    assert len(trials) == 4 and all(trial.state.is_finished() for trial in trials.values())
    for name, trial in known.items():
        assert trials[name] == trial or not trial.state.is_finished()
        assert trials[name].intermediate_values.items() >= trial.intermediate_values.items()
    assert all(sorted(trial.intermediate_values) == [1, 2] for trial in trials.values())
