"""Pictures of studies: each shows what its record says, and none fails on a study that has little to show."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from PIL import Image

from msad.pictures import study_pictures
from msad.pictures.study_pictures import save_parallel, save_study_pictures, save_validation_test

SPACE = {
    "learning_rate": {"kind": "float", "low": 1e-4, "high": 1e-2, "log": True},
    "model/dropout": {"kind": "float", "low": 0.0, "high": 0.5, "log": False},
    "model/depth": {"kind": "int", "low": 3, "high": 4, "log": False},
    "model/fixed": {"kind": "int", "low": 2, "high": 2, "log": False},
    "model/channels": {"kind": "categorical", "choices": [None, 1, True, "1"]},
}


def trial(number, state, value, test=None, **params):
    defaults = {"learning_rate": 1e-3, "model/dropout": 0.1, "model/depth": 3, "model/fixed": 2, "model/channels": None}
    return {
        "number": number, "job_id": f"t{number}", "state": state, "value": value, "failure": None,
        "params": defaults | params, "test": {"image_auroc": test} if test else None,
    }  # fmt: skip


@pytest.fixture
def record():
    return {
        "study": "brick/multiscale",
        "objective": "validation_score",
        "chosen": 2,
        "space": SPACE,
        "defaults": {},
        "importance": {
            "evaluator": "fANOVA", "trials": 3, "reason": None, "shares": {name: 1 / len(SPACE) for name in SPACE},
        },
        "trials": [
            trial(0, "complete", 0.5, 0.7),
            trial(1, "pruned", 0.3),
            trial(2, "complete", 0.9, 0.8, learning_rate=5e-3, **{"model/channels": True}),
            trial(3, "failed", None),
            trial(4, "complete", 0.7, 0.9, **{"model/channels": "1", "model/depth": 4}),
            trial(5, "running", None),
        ],
    }  # fmt: skip


def contents(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def texts(record, save, tmp_path, monkeypatch):
    """Draw a picture; return all words in it."""
    kept = []
    monkeypatch.setattr(study_pictures, "save_figure", lambda figure, path: kept.append(figure))
    save(record, tmp_path / "picture.png")
    figure = kept[0]
    figure.draw_without_rendering()
    found = [text.get_text() for text in figure.texts]
    for axes in figure.axes:
        legend = axes.get_legend()
        labels = [*axes.get_yticklabels(), *axes.texts, *(legend.get_texts() if legend else [])]
        found += [text.get_text() for text in labels]
    return found


def test_save_study_pictures_writes_all_four(record, tmp_path):
    files = save_study_pictures(record, tmp_path / "new")
    assert [file.stem for file in files] == ["history", "parallel", "importance", "validation_test"]
    assert all(contents(file).std() > 5 for file in files)


def test_pictures_change_with_the_trials_and_repeat(record, tmp_path):
    changed = copy.deepcopy(record)
    changed["trials"][4]["value"] = 0.8
    pictures = {}
    for name, values in (("a", record), ("b", record), ("c", changed)):
        pictures[name] = {file.stem: contents(file) for file in save_study_pictures(values, tmp_path / name)}
    for name in ("history", "parallel", "validation_test"):
        assert np.array_equal(pictures["a"][name], pictures["b"][name])
        same = pictures["a"][name].shape == pictures["c"][name].shape
        assert not (same and np.array_equal(pictures["a"][name], pictures["c"][name]))


def test_history_marks_the_chosen_the_stopped_and_the_failed(record, tmp_path, monkeypatch):
    words = texts(record, study_pictures.save_history, tmp_path, monkeypatch)
    assert {"best so far", "complete", "stopped early, at its last value", "failed", "chosen: 0.900"} <= set(words)


def test_parallel_has_a_row_per_parameter_most_important_first(record, tmp_path, monkeypatch):
    record["importance"]["shares"] = {"model/depth": 0.8, "learning_rate": 0.2}
    words = texts(record, save_parallel, tmp_path, monkeypatch)
    rows = [word for word in words if word in SPACE]
    assert rows[:2] == ["model/depth", "learning_rate"] and set(rows) == set(SPACE)
    assert {"0.0001", "0.001", "0.01", "None", "True", "0.500", "0.900"} <= set(words)


def test_validation_test_tells_correlation_chosen_oracle_and_chance(record, tmp_path, monkeypatch):
    words = texts(record, save_validation_test, tmp_path, monkeypatch)
    assert any("3 trials: Spearman ρ 0.50" in word for word in words)
    assert {"a random choice: 0.800", "best on test: 0.900", "chosen by validation: 0.800"} <= set(words)


def test_study_without_tests_has_no_picture_of_them(record, tmp_path):
    for values in record["trials"]:
        values["test"] = None
    assert [file.stem for file in save_study_pictures(record, tmp_path)] == ["history", "parallel", "importance"]


@pytest.mark.parametrize("states", [[], ["failed", "failed"], ["running"], ["pruned"], ["complete"]])
def test_study_with_little_to_show_is_drawn_all_the_same(record, tmp_path, states):
    kept = {"complete": 0.5, "pruned": 0.4}
    record |= {
        "trials": [trial(place, state, kept.get(state)) for place, state in enumerate(states)],
        "chosen": 0 if states == ["complete"] else None,
        "importance": record["importance"] | {"shares": {}, "reason": "1 complete trial: importance needs at least 4"},
    }
    assert len(save_study_pictures(record, tmp_path)) == 3
    record["space"] = {}
    assert len(save_study_pictures(record, tmp_path)) == 3


def test_importance_that_is_not_known_says_why(record, tmp_path, monkeypatch):
    record["importance"] |= {"shares": {}, "reason": "2 complete trials: importance needs at least 4"}
    words = texts(record, study_pictures.save_importance, tmp_path, monkeypatch)
    assert "2 complete trials: importance needs at least 4" in words


def test_trial_whose_test_figure_is_unknown_is_left_out(record, tmp_path, monkeypatch):
    record["trials"][2]["test"] = {"image_auroc": None}  # the chosen one
    words = texts(record, save_validation_test, tmp_path, monkeypatch)
    assert any("2 trials: too few or equal values to rank" in word for word in words)
    assert not any("chosen" in word for word in words)
