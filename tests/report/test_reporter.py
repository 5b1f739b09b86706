"""What a sweep tells of finals and reports: which record each event leaves, and what a failure leaves of the others."""

from __future__ import annotations

import io
import json

import optuna
import pytest
from optuna.distributions import FloatDistribution
from rich.console import Console

from msad.report.live import LiveView
from msad.report.reporter import Reporter
from msad.report.study_runs import StudyRuns
from msad.search.study import Study
from msad.training.job_config import JobConfig
from msad.workspace import Workspace

RESULT = {"epoch": 2, "threshold": 0.5, "parameters": 9, "score": 0.8, "image_auroc": 0.9, "pixel_ap": 0.4}


def figures(image_auroc: float) -> dict[str, float]:
    return {"image_auroc": image_auroc, "image_prauc": 0.9, "pixel_auroc": 0.9, "aupro_30": 0.7, "recall": float("nan")}


class Records(dict):
    """The newest record of each ID: what a tracker would deliver."""

    def put(self, record):
        self[record.record_id] = record


@pytest.fixture
def study():
    """A finished study of four trials, the third of them the best."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    base = JobConfig(category="brick", architecture="baseline", seed=7)
    space = {"learning_rate": FloatDistribution(1e-4, 1e-2, log=True)}
    study = Study(base, space, 4, optuna.storages.InMemoryStorage(), "none")
    for value in (0.5, 0.6, 0.9, 0.7):
        study.tell(study.ask()[0], value=value)
    return study


@pytest.fixture
def sweep(study, tmp_path):
    """Return a function that makes a reporter; gives it, its records, its workspace and what it printed."""

    def sweep(final_seeds=1):
        text, records, workspace = io.StringIO(), Records(), Workspace(tmp_path)
        view = LiveView([study], 1, Console(file=text, width=200))

        def tags(job):
            return {"msad.identity": f"seed {job.seed}"}

        reporter = Reporter(workspace, view, StudyRuns(workspace, records, tags, final_seeds))
        return reporter, records, workspace, text

    return sweep


def finish(reporter, study, *outcomes):
    """Play finals that end with a test image AUROC, or with a reason to fail."""
    for index, outcome in enumerate(outcomes):
        reporter.finals.started(study, index)
        final = reporter.runs.finals(study)[index]
        if isinstance(outcome, str):
            final.write("failure", {"reason": outcome})
        else:
            final.write("result", RESULT)
            final.write("test", figures(outcome))
        reporter.finals.ended(study, index)


def test_single_final_is_the_studys_run_and_has_no_nested_one(sweep, study):
    reporter, records, _, text = sweep()
    finish(reporter, study, 0.9)
    assert set(records) == {"brick-baseline"}
    record = records["brick-baseline"]
    assert record.status == "complete" and record.metrics["test_image_auroc"] == 0.9
    assert not {"final_seeds", "test_image_auroc_mean", "test_recall"} & set(record.metrics)
    assert text.getvalue().splitlines()[-1] == "brick/baseline: test image AUROC 0.9000"


def test_study_is_complete_when_its_last_seed_is(sweep, study):
    reporter, records, _, text = sweep(final_seeds=3)
    finish(reporter, study, 0.9, 0.94)
    assert records["brick-baseline"].status == "running"
    reporter.runs.finals(study)[2].write("test", figures(0.95))
    reporter.finals.ended(study, 2)
    record = records["brick-baseline"]
    assert record.status == "complete" and record.directory == reporter.runs.finals(study)[0]
    assert record.metrics["test_image_auroc"] == 0.9 and record.metrics["final_seeds"] == 3
    assert record.metrics["test_image_auroc_mean"] == pytest.approx(0.93)
    assert "test image AUROC 0.9300 ± 0.0265" in text.getvalue()
    seeds = [records[f"brick-baseline-final-seed{index}"] for index in range(3)]
    assert [seed.params["seed"] for seed in seeds] == [7, 8, 9]
    assert all((seed.kind, seed.parent, seed.register_as) == ("final", "brick-baseline", None) for seed in seeds)


def test_seed_that_fails_shows_and_is_in_no_mean(sweep, study):
    reporter, records, _, _ = sweep(final_seeds=3)
    finish(reporter, study, 0.9, "the loss is nan in epoch 2", 0.94)
    failed = records["brick-baseline-final-seed1"]
    assert (failed.status, failed.reason) == ("failed", "the loss is nan in epoch 2")
    record = records["brick-baseline"]
    assert record.status == "complete" and record.metrics["final_seeds"] == 2
    assert record.metrics["test_image_auroc_mean"] == pytest.approx(0.92)


def test_first_seed_that_fails_is_not_replaced_by_another(sweep, study):
    reporter, records, _, _ = sweep(final_seeds=2)
    finish(reporter, study, "out of memory", 0.99)
    record = records["brick-baseline"]
    assert (record.status, record.reason, record.register_as) == ("failed", "out of memory", None)


def test_trials_test_figures_stand_under_names_of_their_own(sweep, study):
    reporter, records, workspace, text = sweep()
    finish(reporter, study, 0.9)
    for record, image_auroc in zip(study.records(), (0.8, 0.95, 0.9, 0.7), strict=True):
        reporter.selection.started(study, record.job_id)
        workspace.job(record.job_id).write("test_report", figures(image_auroc))
        reporter.selection.ended(study, record.job_id)
    reporter.selection.concluded(study)
    trial = records["brick-baseline-0001"]
    assert trial.metrics["report_test_image_auroc"] == 0.95 and "test_image_auroc" not in trial.metrics
    assert trial.tags["msad.test_metrics"] == "reporting only, after selection"
    record = records["brick-baseline"]
    shown = {name: value for name, value in record.metrics.items() if name.startswith("selection_")}
    assert shown == {
        "selection_spearman": pytest.approx(0.0), "selection_gap": pytest.approx(0.05), "selection_chosen": 0.9,
        "selection_oracle": 0.95, "selection_random": pytest.approx(0.8375), "selection_trials": 4,
    }  # fmt: skip
    assert record.best == "brick-baseline-0002"  # whatever the test says
    assert text.getvalue().count("testing its trials") == 1


def test_trial_that_cannot_be_tested_is_named_and_left_out(sweep, study):
    reporter, records, workspace, text = sweep()
    finish(reporter, study, 0.9)
    for record, image_auroc in zip(study.records(), (0.8, None, 0.9, 0.7), strict=True):
        directory = workspace.job(record.job_id)
        if image_auroc is None:
            directory.write("test_report_failure", {"reason": "bundle.json: damaged"})
        else:
            directory.write("test_report", figures(image_auroc))
        reporter.selection.ended(study, record.job_id)
    reporter.selection.concluded(study)
    assert "brick-baseline-0001 is left out of the report on the selection: bundle.json: damaged" in text.getvalue()
    assert records["brick-baseline"].metrics["selection_trials"] == 3


def test_finished_study_leaves_a_record_and_pictures_of_its_search(sweep, study):
    reporter, _, _, _ = sweep()
    reporter.runs.put_study(study, "running")
    assert not reporter.runs.finals(study)[0].path.exists()
    finish(reporter, study, 0.9)
    final = reporter.runs.finals(study)[0]
    pictures = final.path / "pictures"
    assert [trial["value"] for trial in final.read("search")["trials"]] == [0.5, 0.6, 0.9, 0.7]
    assert sorted(path.name for path in pictures.iterdir()) == ["history.png", "importance.png", "parallel.png"]


def test_pictures_of_a_search_are_drawn_anew_only_when_something_has_changed(sweep, study):
    reporter, _, workspace, _ = sweep()
    finish(reporter, study, 0.9)
    history = reporter.runs.finals(study)[0].path / "pictures" / "history.png"
    history.write_bytes(b"untouched")
    reporter.finals.ended(study)  # as a resume does
    assert history.read_bytes() == b"untouched"
    for record in study.records():
        workspace.job(record.job_id).write("test_report", figures(0.9))
    reporter.selection.concluded(study)
    assert history.read_bytes() != b"untouched" and history.with_name("validation_test.png").is_file()
    assert all(trial["test"]["image_auroc"] == 0.9 for trial in reporter.runs.finals(study)[0].read("search")["trials"])


def test_failed_study_leaves_a_record_and_a_single_training_none(sweep, study, tmp_path):
    reporter, _, _, _ = sweep()
    reporter.finals.failed(study, "out of memory")
    assert reporter.runs.finals(study)[0].read("search")["chosen"] == 2
    job = JobConfig(category="brick", architecture="multiscale")
    fixed = Study(job, {}, 0, optuna.storages.InMemoryStorage(), "none")
    finish(reporter, fixed, 0.9)
    assert (
        reporter.runs.finals(fixed)[0].read("search") is None
        and not (reporter.runs.finals(fixed)[0].path / "pictures").exists()
    )


def test_selection_file_is_json_for_any_reader_also_where_nothing_is_ranked(sweep, study):
    reporter, records, workspace, _ = sweep()
    finish(reporter, study, 0.9)
    for record in study.records():
        workspace.job(record.job_id).write("test_report", {**figures(1.0), "pixel_auroc": float("nan")})
    reporter.selection.concluded(study)

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    selection = json.loads((reporter.runs.finals(study)[0].path / "selection.json").read_text(), parse_constant=refuse)
    assert selection["image_auroc"]["spearman"] is None and selection["image_auroc"]["gap"] == 0
    assert selection["pixel_auroc"]["trials"] == 0
    assert "selection_spearman" not in records["brick-baseline"].metrics


def test_suspects_are_told_once_for_a_category_and_kept_with_the_study(study, sweep):
    reporter, records, workspace, text = sweep()
    names = [f"brick/train/good/{index}.png" for index in range(4)]
    for record in study.records()[:2]:
        workspace.job(record.job_id).write("result", RESULT | {"suspects": names})
        reporter.trials.started(study, record.job_id)
        reporter.trials.ended(study, record.job_id)
    reporter.finals.started(study)
    reporter.runs.finals(study)[0].write("result", RESULT | {"suspects": names[:1]})
    reporter.finals.ended(study)
    told = [line for line in text.getvalue().splitlines() if "stand out" in line]
    assert len(told) == 1 and "warning: brick: 4 of the good images stand out: brick/train/good/0.png" in told[0]
    assert "2.png, ...: is each of them good? `msad data suspects`" in told[0]
    assert records[study.id].tags["msad.suspects"] == "1 of the good images stands out: brick/train/good/0.png"
