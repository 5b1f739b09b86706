"""The sweep's own run in a real MLflow store: leaderboard, report, the stars; on a resume, and when it fails."""

from __future__ import annotations

import pytest

from msad.errors import TrackingError
from msad.report import page
from msad.report.sweep_run import LONGEST_NOTE, MOST_WINNERS, experiment_note, sweep_note
from msad.tracking.store import connect
from msad.tracking.ui.pages import Pages

# The test figures point the other way: only the validation score may give a star.
FIGURES = {
    ("brick", "baseline"): (0.6, 0.95),
    ("brick", "multiscale"): (0.7, 0.8),
    ("gear", "baseline"): (0.5, 0.9),
    ("gear", "multiscale"): "the loss is nan in epoch 2",
}


def runs(uri):
    client = connect(uri)
    experiment = client.get_experiment_by_name("first")
    found = client.search_runs([experiment.experiment_id])
    by_id = {run.data.tags["msad.trial_id"]: run for run in found}
    assert len(by_id) == len(found), "a record has two runs"
    return client, experiment, by_id


@pytest.fixture(scope="module")
def recorded(record_sweep, tmp_path_factory):
    uri, unreported = record_sweep(tmp_path_factory.mktemp("sweep"), FIGURES)
    assert unreported is None
    return runs(uri)


def test_sweeps_run_holds_leaderboard_report_and_heat_table(recorded):
    client, experiment, by_id = recorded
    run = by_id["sweep"]
    assert run.info.status == "FINISHED" and run.data.tags["msad.kind"] == "sweep"
    note = run.data.tags["mlflow.note.content"]
    assert "2 categories × 2 architectures, 2 trials each" in note
    for record_id in ("brick-baseline", "brick-multiscale", "gear-baseline", "gear-multiscale"):
        assert f"(#/experiments/{experiment.experiment_id}/runs/{by_id[record_id].info.run_id})" in note
    rows = [line for line in note.splitlines() if line.startswith("| [")]
    assert "[★ brick / multiscale]" in rows[0] and "0.700" in rows[0] and "1&nbsp;of&nbsp;12" in rows[0]
    assert "gear / multiscale" in rows[3] and "(failed)" in rows[3]
    files = [item.path for folder in ("", "pictures") for item in client.list_artifacts(run.info.run_id, folder)]
    assert {"report.html", "pictures/heat_table.png", "pictures/speed.png"} <= set(files)


def test_sweeps_run_is_the_newest_without_a_parent_so_that_it_stands_first(recorded):
    client, experiment, _ = recorded
    newest = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"], max_results=1)[0]
    assert newest.data.tags["msad.kind"] == "sweep" and "mlflow.parentRunId" not in newest.data.tags


def test_experiment_says_what_it_is_and_links_the_winners(recorded):
    _, experiment, by_id = recorded
    lines = experiment.tags["mlflow.note.content"].split("\n\n")
    assert lines[0].startswith("2 categories × 2 architectures, 2 trials each: [leaderboard](#/experiments/")
    best = lines[2].splitlines()
    assert len(best) == 2 and "★ brick / multiscale" in best[0] and "★ gear / baseline" in best[1]
    assert f"runs/{by_id['brick-multiscale'].info.run_id}/artifacts/pictures/gallery.png" in best[0]
    assert "#/models/msad-brick" in best[0]


def test_best_of_each_category_by_validation_has_the_star_and_the_tag(recorded):
    _, _, by_id = recorded
    studies = [run for run in by_id.values() if run.data.tags["msad.kind"] == "study"]
    starred = {run.info.run_name for run in studies if run.data.tags["msad.best"] == "true"}
    assert starred == {"★ brick / multiscale", "★ gear / baseline"}
    others = {run.info.run_name for run in studies if run.data.tags["msad.best"] == "false"}
    assert others == {"brick / baseline", "gear / multiscale"}


def test_studies_have_sortable_names_from_the_start_and_links_to_what_belongs_to_them(recorded):
    _, experiment, by_id = recorded
    run = by_id["brick-multiscale"]
    assert (run.data.params["category"], run.data.params["architecture"]) == ("brick", "multiscale")
    assert by_id["gear-multiscale"].data.params == {"category": "gear", "architecture": "multiscale"}
    note, page = run.data.tags["mlflow.note.content"], f"#/experiments/{experiment.experiment_id}/runs"
    assert f"[the trial that won]({page}/{by_id['brick-multiscale-0001'].info.run_id})" in note
    assert f"[gallery]({page}/{run.info.run_id}/artifacts/pictures/gallery.png)" in note
    assert f"[the sweep's run]({page}/{by_id['sweep'].info.run_id})" in note
    assert "[registered model](#/models/msad-brick)" in note and f"msad pull {run.info.run_id}" in note
    assert by_id["gear-multiscale"].data.tags["mlflow.note.content"].startswith("No winner: the loss is nan in epoch 2")
    assert by_id["brick-multiscale-0001"].info.run_name == "trial 0001"
    assert {"train/loss", "validation_score", "test_image_auroc"} <= set(run.data.metrics)


def test_resume_moves_the_star_and_makes_no_second_run(record_sweep, tmp_path):
    figures = {("brick", "baseline"): (0.6, 0.95), ("brick", "multiscale"): "out of memory"}
    uri, _ = record_sweep(tmp_path, figures)
    _, _, before = runs(uri)
    assert before["brick-baseline"].info.run_name == "★ brick / baseline"
    assert record_sweep(tmp_path, figures | {("brick", "multiscale"): (0.7, 0.8)}) == (uri, None)
    _, experiment, after = runs(uri)
    assert {key: run.info.run_id for key, run in after.items()} == {key: run.info.run_id for key, run in before.items()}
    names = {
        after[key].info.run_name: after[key].data.tags["msad.best"] for key in ("brick-baseline", "brick-multiscale")
    }
    assert names == {"brick / baseline": "false", "★ brick / multiscale": "true"}
    assert "★ brick / multiscale" in experiment.tags["mlflow.note.content"]
    assert "★ brick / baseline" not in after["sweep"].data.tags["mlflow.note.content"]


def test_report_that_fails_leaves_the_results_and_is_made_by_the_next_resume(record_sweep, tmp_path, monkeypatch):
    figures = {("brick", "baseline"): (0.6, 0.95)}
    with monkeypatch.context() as broken:

        def refuse(*_):
            raise TrackingError("the store does not answer")

        broken.setattr(page, "write_report", refuse)
        uri, unreported = record_sweep(tmp_path, figures)
    assert unreported == "the store does not answer"
    _, _, by_id = runs(uri)
    assert by_id["brick-baseline"].info.status == "FINISHED" and by_id["sweep"].info.status == "RUNNING"
    assert record_sweep(tmp_path, figures) == (uri, None)
    client, _, by_id = runs(uri)
    assert by_id["sweep"].info.status == "FINISHED"
    assert "report.html" in {item.path for item in client.list_artifacts(by_id["sweep"].info.run_id)}


def many(count):
    names = ("validation_score", "validation_chance", "image_auroc", "image_prauc", "aupro_30", "misses")
    figures = dict.fromkeys(names, 0.5)
    counts = dict.fromkeys(("false_positives", "good_images", "defective_images"), float("nan"))
    return [
        {"category": f"category{index // 2:03}", "architecture": "multiscale_segmenter", "best": index % 2 == 0}
        | {"status": "complete", **figures, **counts}
        for index in range(count)
    ]


@pytest.mark.parametrize("count", [1, 30, 60, 400])
def test_notes_of_any_sweep_fit_what_mlflow_keeps(count):
    pages = Pages("123456", lambda record_id: "0" * 32)
    note = sweep_note("many", many(count), pages)
    shown = sum(line.startswith("| [") for line in note.splitlines())
    assert len(note) <= LONGEST_NOTE
    assert shown == count or note.endswith(f"{count - shown} more are in the [leaderboard]({pages.leaderboard}).")
    assert shown >= min(count, 20) and "| 0.500&nbsp;(0.50) | " in note.replace("&ensp;", "")
    winners = experiment_note("many", many(count), pages).count("\n- ") + 1
    assert winners <= MOST_WINNERS + 1
