"""Identifiers of whatever people call their products, the filters that are made of them, and lists of names."""

from __future__ import annotations

import re

import pytest
from markupsafe import escape

from msad.errors import TrackingError
from msad.names import LONGEST, identifier, registered_name, search_filter, study_id, study_ids
from msad.report.page import render
from msad.terminal.leaderboard_text import format_leaderboard
from msad.terminal.options import split_names
from msad.tracking.champion import find_run
from msad.tracking.compare import leaderboard
from msad.tracking.model_store import pull
from msad.tracking.read_sweep import read_sweep
from msad.tracking.store import connect
from msad.tracking.ui.pages import as_text

NASTY = [
    "Löt", "Lot", "Lo\u0308t", "Bob's bolt", 'say "x" \'y\'', "rev:B", "rev.B", "rev/B", "a\\b", "a\u2215b", "a\uff0fb",
    "🔩", "🔧",    "螺丝", "50%", "\t", "a\nb", "-dash", ".dot", "~", "~e3b0c44298", "B" * 300, "B" * 301, "ö" * 120,
    "\udcff", "\udcfe",
]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["gear", "Class1", "M4 bolt", "pcb-1_v2.0", "M4,5 bolt", "50% off", "a[b]#c@d", "x" * 200]
)
def test_ascii_name_that_every_system_bears_stands_for_itself(name):
    assert identifier(name) == name
    assert study_id(f"{name}/baseline") == f"{name}-baseline"
    assert registered_name(name) == f"msad-{name}"


def test_architecture_of_a_python_path_has_no_colon_in_a_study_id():
    assert study_id("brick/my_package.my_module:MyDetector") == "brick-my_package.my_module.MyDetector"


def test_identifiers_are_ascii_without_slash_colon_or_quote_short_enough_for_a_file_and_all_different():
    made = {name: identifier(name) for name in NASTY}
    assert all(re.fullmatch(r"[ -~]+", one) and not re.search(r"[/\\:']", one) for one in made.values())
    assert all(len(one) <= LONGEST for one in made.values())
    assert len(set(made.values())) == len(NASTY)
    assert identifier("Löt").startswith("Lot~") and identifier("rev:B").startswith("rev_B~")
    assert identifier(made["Löt"]) != made["Löt"]  # a name that looks like another one's identifier
    assert all(len(study_id(f"{name}/{'a' * 60}") + "-final-seed99") <= 255 for name in NASTY)


def test_studies_of_names_that_differ_in_case_alone_have_ids_that_differ_in_more():
    keys = ["BOLT/baseline", "Bolt/baseline", "bolt/baseline", "gear/baseline", "Class1/baseline"]
    ids = study_ids(keys)
    assert len({one.casefold() for one in ids.values()}) == len(keys)
    assert ids["bolt/baseline"] == "bolt-baseline" and ids["Class1/baseline"] == "Class1-baseline"
    assert study_ids(reversed(keys)) == ids


def test_studies_whose_names_join_to_the_same_words_have_different_ids():
    ids = study_ids(["a-b/c", "a/b-c"])
    assert len(set(ids.values())) == 2


@pytest.mark.parametrize("value", ["plain", "Bob's bolt", '5" bolt', "50% a`b; [x] = \\ ", "Löt 🔩"])
def test_filter_finds_the_value_that_was_meant(client, experiment, value):
    run = client.create_run(experiment, tags={"msad.trial_id": value, "msad.kind": "trial"})
    found = client.search_runs([experiment], search_filter(tags__trial_id=value, tags__kind="trial"))
    assert [one.info.run_id for one in found] == [run.info.run_id]


@pytest.mark.parametrize("value", ["'\"", "a\\"])
def test_filter_that_mlflow_has_no_way_to_write_is_refused_rather_than_wrong(value):
    with pytest.raises(ValueError, match="MLflow cannot filter"):
        search_filter(name=value)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a,b", ["a", "b"]),
        ('"M4,5 bolt",gear', ["M4,5 bolt", "gear"]),
        (' a , "b c " ,, d', ["a", "b c ", "d"]),
        ('5" bolt,x', ['5" bolt', "x"]),
        ('"say ""x"", now"', ['say "x", now']),
        ("Bob's bolt", ["Bob's bolt"]),
        ("", []),
    ],
)
def test_names_in_one_option_are_parted_at_commas_outside_of_double_quotes(text, names):
    assert split_names(text) == names


def test_any_name_goes_through_mlflow_the_registry_the_report_and_the_leaderboard(record_sweep, bundle, tmp_path):
    names = ["Löt \U0001f529", 'Bob\'s "bolt"', "rev:B", "M4,5 50% $a_b$ [red] | \\", "Bolt", "bolt"]
    uri, unreported = record_sweep(tmp_path, {(name, "baseline"): (0.7, 0.9) for name in names}, bundle)
    assert unreported is None
    table = leaderboard("first", uri)
    assert sorted(table["category"]) == sorted(names) and set(table["status"]) == {"complete"}
    text, page = format_leaderboard(table, terminal=False), render(read_sweep("first", uri))
    client = connect(uri)
    experiment = client.get_experiment_by_name("first").experiment_id
    [sweep] = client.search_runs([experiment], search_filter(tags__kind="sweep"))
    note = sweep.data.tags["mlflow.note.content"]
    for name, run_id in zip(table["category"], table["run_id"], strict=True):
        assert find_run(client, f"{name}@champion").info.run_id == run_id
        assert client.get_registered_model(registered_name(name)).tags["msad.category"] == name
        assert f"{name} / baseline ★: msad pull {run_id}" in text and str(escape(name)) in page
        assert f"[★ {as_text(name)} / baseline](#/experiments/" in note
    jobs = [path.name for path in (tmp_path / "sweeps" / "first" / "jobs").iterdir()]
    assert len({job.casefold() for job in jobs}) == len(jobs) and all(job.isascii() for job in jobs)
    assert pull(f"{names[1]}@champion", tmp_path / "pulled", uri).is_dir()
    with pytest.raises(TrackingError, match="Löt \U0001f529@champion"):
        find_run(client, "lot@champion")
