"""The leaderboard of a sweep, read back from a real SQLite store."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from mlflow import MlflowClient

from msad.errors import TrackingError
from msad.search.selection import SEED_FIGURES
from msad.terminal.leaderboard_text import format_leaderboard
from msad.tracking.compare import COLUMNS, leaderboard

FIGURES = {
    "test_image_auroc": 0.9,
    "test_image_prauc": 0.95,
    "test_image_prevalence": 0.76,
    "test_pixel_auroc": 0.93,
    "test_pixel_prauc": 0.41,
    "test_pixel_prevalence": 0.056,
    "test_aupro_30": 0.8,
    "parameters": 1928483.0,
    "test_latency_ms": 41.25,
    "test_false_positives": 3.0,
    "test_good_images": 20.0,
    "test_misses": 1.0,
    "test_defective_images": 63.0,
    "validation_chance": 0.4123,
    "false_alarms_target": 0.01,
    "false_alarms_held_out": 31.0,
    "false_alarms_smallest": 1 / 32,
    "false_alarms_expected": 1 / 32,
    "false_alarms_at_most": 0.0921,
}
SEEDS = {
    "final_seeds": 3.0,
    **{f"test_{name}_mean": 0.912 for name in SEED_FIGURES},
    **{f"test_{name}_sd": 0.0042 for name in SEED_FIGURES},
}
SELECTION = {
    "selection_trials": 12.0,
    "selection_spearman": 0.7123,
    "selection_gap": 0.0041,
    "selection_random": 0.8531,
}


def study_run(client, experiment, category, architecture, trials, status="complete", **metrics):
    study = f"{category}/{architecture}"
    tags = {"msad.kind": "study", "msad.study": study, "msad.category": category, "msad.architecture": architecture}
    run = client.create_run(experiment, tags=tags | {"msad.status": status}).info.run_id
    ids = [
        client.create_run(experiment, tags={"msad.kind": "trial", "msad.study": study, "mlflow.parentRunId": run})
        for _ in range(trials)
    ]
    if ids:
        client.set_tag(run, "msad.best_trial", ids[-1].info.run_id)
    for name, value in metrics.items():
        client.log_metric(run, name, value)
    return run


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri)
    first = client.create_experiment("first", tags={"msad.sweep": "first"})
    client.create_experiment("somebody's own work")
    runs = {
        # The test figures point the other way: only the validation score may choose.
        ("bottle", "baseline"): study_run(
            client, first, "bottle", "baseline", 3, validation_score=0.7, **FIGURES | {"test_image_auroc": 0.99}
        ),
        ("bottle", "multiscale"): study_run(
            client, first, "bottle", "multiscale", 2, validation_score=0.8, **FIGURES, **SEEDS, **SELECTION
        ),
        ("tile", "baseline"): study_run(client, first, "tile", "baseline", 1, validation_score=0.6, **FIGURES),
        ("tile", "multiscale"): study_run(
            client, first, "tile", "multiscale", 1, status="failed", validation_score=0.9
        ),
        ("wood", "baseline"): study_run(client, first, "wood", "baseline", 0, status="running"),
    }
    second = client.create_experiment("second", tags={"msad.sweep": "second"})
    study_run(client, second, "bottle", "baseline", 1, validation_score=0.5, **FIGURES)
    return uri, runs


def test_leaderboard_marks_the_highest_validation_score_not_the_highest_test_figure(store):
    uri, runs = store
    frame = leaderboard("first", uri)
    assert tuple(frame.columns) == COLUMNS
    assert frame.loc[frame["best"], ["category", "architecture"]].values.tolist() == [
        ["bottle", "multiscale"],
        ["tile", "baseline"],
    ]
    found = {(row.category, row.architecture): row for row in frame.itertuples()}
    assert {key: row.run_id for key, row in found.items()} == runs
    assert [found[key].trials for key in runs] == [3, 2, 1, 1, 0]
    winner = found["bottle", "multiscale"]
    assert (winner.image_auroc, winner.pixel_prevalence, winner.parameters) == (0.9, 0.056, 1928483)
    assert (winner.false_positives, winner.good_images, winner.misses, winner.defective_images) == (3, 20, 1, 63)
    assert (winner.aupro_30_mean, winner.aupro_30_sd, winner.selection_gap) == (0.912, 0.0042, 0.0041)
    assert winner.best_trial_run_id not in (None, winner.run_id)


def test_leaderboard_study_without_figures_is_nan_and_never_best(store):
    row = leaderboard("first", store[0]).set_index("category").loc["wood"]
    assert row["status"] == "running" and math.isnan(row["validation_score"]) and not row["best"]


def test_leaderboard_without_a_name_is_the_newest_sweep(store):
    assert leaderboard(None, store[0])["validation_score"].tolist() == [0.5]


def test_leaderboard_unknown_sweep_names_the_nearest(store):
    with pytest.raises(TrackingError, match=r"'frist'.*did you mean 'first'"):
        leaderboard("frist", store[0])
    with pytest.raises(TrackingError, match=r"known are .*first"):
        leaderboard("zzzzzz", store[0])


def test_leaderboard_missing_database_is_an_error_and_creates_nothing(tmp_path):
    with pytest.raises(TrackingError, match="no such database"):
        leaderboard("first", f"sqlite:///{tmp_path / 'mistyped.db'}")
    assert not list(tmp_path.iterdir())


def test_format_leaderboard_without_a_terminal_is_the_same_narrow_table_without_colours(store, monkeypatch):
    uri, _ = store
    table = leaderboard("first", uri)
    text = format_leaderboard(table, terminal=False)
    coloured = format_leaderboard(table, terminal=True, width=80)
    assert "\x1b" not in text and text == re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert "msad pull" in text and max(map(len, text.splitlines())) <= 80


def test_format_leaderboard_says_how_many_known_defects_had_a_say(store):
    table = leaderboard("first", store[0])
    assert "Known defects" not in format_leaderboard(table, terminal=False)
    told = {"known_defects_count": 5.0, "known_defects_share": 1 / 3, "known_defects_taught": 2.0}
    table.loc[table["category"] == "bottle", [*told]] = [*told.values()]
    text = " ".join(format_leaderboard(table, terminal=False).split())
    assert "Known defects helped to choose: bottle 5, 33% of the validation score (2 more were trained on)" in text


def test_format_leaderboard_shows_names_as_they_are_and_no_trials_where_nothing_was_searched(store):
    table = leaderboard("first", store[0]).assign(trials=0)
    table["category"] = table["category"].replace("bottle", "a [red]b[/] :bolt: [/x]")
    text = format_leaderboard(table, terminal=False)
    assert "a [red]b[/] :bolt: [/x]\n" in text.replace("  ", "") or "a [red]b[/]" in text
    assert "a [red]b[/] :bolt: [/x] / multiscale ★: msad pull" in text
    assert " 0 0.8" not in " ".join(text.split()) and "multiscale ★ - 0.800" in " ".join(text.split())


def test_format_leaderboard_terminal_keeps_run_ids_whole_when_narrow(store):
    uri, runs = store
    text = format_leaderboard(leaderboard("first", uri), terminal=True, width=80)
    assert "\x1b[" in text
    complete = set(leaderboard("first", uri).query("status == 'complete'")["run_id"])
    pulled = {run for run in runs.values() if f"msad pull {run} --to DIR" in text}
    assert pulled == complete < set(runs.values())  # what has no model is not offered
    assert "multiscale ★" in text and "multiscale (failed)" in text
    assert "1.93M" not in text and "1.93M" in format_leaderboard(leaderboard("first", uri), terminal=True, width=120)
    assert all(len(line) <= 80 for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines())


@pytest.mark.parametrize("width", [80, 104, 105, 120])
def test_format_leaderboard_terminal_shows_seeds_errors_and_how_well_validation_chose(store, width):
    text = format_leaderboard(leaderboard("first", store[0]), terminal=True, width=width)
    lines = [" ".join(line.split()) for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()]
    first = lines.index("bottle (.41) (.76) (.06) of 20 of 63")
    multiscale, seeds, baseline = lines[first + 1 : first + 4]
    extras = " 1.93M 41.2" if width >= 105 else ""
    assert multiscale == f"multiscale ★ 2 0.800 0.912 0.912 0.912 0.410 0.912 3 1{extras}"
    assert seeds == "3 seeds ±.004 ±.004 ±.004 ±.004"
    assert baseline == f"baseline 3 0.700 0.990 0.950 0.930 0.410 0.800 3 1{extras}"  # one seed: no spread
    assert (
        "bottle / multiscale ★: Spearman ρ 0.71 over 12 trials, gap to the best trial on test 0.004, "
        "a random choice 0.853"
    ) in " ".join(lines)
    assert text.count("Spearman") == 1  # the others were not reported on
    assert "wood" in lines  # nothing of it is tested, so nothing is known of its images


def test_format_leaderboard_terminal_without_masks_gives_no_chance_level_of_pixels(store):
    table = leaderboard("first", store[0])
    table.loc[table["category"] == "bottle", ["pixel_auroc", "pixel_prauc", "pixel_prevalence", "aupro_30"]] = np.nan
    lines = re.sub(r"\x1b\[[0-9;]*m", "", format_leaderboard(table, terminal=True, width=120)).splitlines()
    assert "bottle (.41) (.76) of 20 of 63" in [" ".join(line.split()) for line in lines]


def test_leaderboard_tells_chance_and_what_the_thresholds_promise(store):
    frame = leaderboard("first", store[0])
    assert frame.set_index("category").loc["tile", "validation_chance"].tolist()[-1] == 0.4123
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", format_leaderboard(frame, terminal=True, width=80)).split())
    said = "False alarms: 0.01 of the good images was aimed at, but so few held-out ones only promise, on average: "
    assert f"{said}bottle 3.1%, tile 3.1%" in text
    kept = format_leaderboard(frame.assign(false_alarms_target=0.05), terminal=True, width=80)
    assert "promise" not in kept


def test_sweep_is_found_by_its_tag_whatever_its_experiment_is_called_now(store):
    uri, _ = store
    client = MlflowClient(tracking_uri=uri)
    number = client.get_experiment_by_name("first").experiment_id
    client.rename_experiment(number, "the good one")
    try:
        assert len(leaderboard("first", uri)) == len(leaderboard("the good one", uri)) == 5
    finally:
        client.rename_experiment(number, "first")


def test_studies_deleted_in_the_ui_are_named_and_a_table_without_any_is_refused(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri)
    number = client.create_experiment("second", tags={"msad.sweep": "second"})
    with pytest.raises(TrackingError, match="'second' has no study yet"):
        leaderboard("second", uri)
    names = ("baseline", "multiscale")
    first, other = (study_run(client, number, "tile", name, 0, validation_score=0.5) for name in names)
    client.delete_run(first)
    frame = leaderboard("second", uri)
    assert list(frame["run_id"]) == [other] and frame["best"].all() and frame.attrs["deleted"] == ["tile/baseline"]
    client.delete_run(other)
    with pytest.raises(TrackingError, match=r"all studies of the sweep 'second' were deleted.*--resume second"):
        leaderboard("second", uri)
    client.delete_experiment(number)
    with pytest.raises(TrackingError, match=rf"'second' was deleted.*restore --experiment-id {number}"):
        leaderboard("second", uri)
