"""Pictures of runs: which images a gallery shows, and that every picture is drawn for every kind of result."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from msad.bundle.evaluation import evaluate
from msad.pictures.gallery import pick, save_evaluation, save_gallery, save_training_curves


@pytest.fixture(scope="module")
def evaluation(bundle, demo, category):
    return evaluate(bundle, demo, category, None)


def contents(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_save_evaluation_writes_pictures_that_show_something(evaluation, tmp_path):
    files = save_evaluation(evaluation, tmp_path / "pictures")
    assert [file.name for file in files] == ["gallery.png", "examples.png", "roc_pr.png", "scores.png"]
    assert all(contents(file).std() > 5 for file in files)


def test_save_evaluation_with_good_images_only_draws_no_curve_and_no_error(evaluation, tmp_path):
    good = evaluation.scores.index[evaluation.scores["label"] == 0]
    only_good = dataclasses.replace(
        evaluation,
        scores=evaluation.scores.loc[good].reset_index(drop=True),
        images=evaluation.images[good],
        masks=evaluation.masks[good],
        maps=evaluation.maps[good],
        metrics=evaluation.metrics | {name: float("nan") for name in evaluation.metrics if name.startswith("image_")},
    )
    assert all(file.is_file() for file in save_evaluation(only_good, tmp_path))


def test_save_gallery_is_the_same_every_time_and_changes_with_the_maps(evaluation, tmp_path):
    changed = dataclasses.replace(evaluation, maps=evaluation.maps + 5)
    for name, result in (("a", evaluation), ("b", evaluation), ("c", changed)):
        save_gallery(result, tmp_path / f"{name}.png", rows=3)
    assert np.array_equal(contents(tmp_path / "a.png"), contents(tmp_path / "b.png"))
    assert not np.array_equal(contents(tmp_path / "a.png"), contents(tmp_path / "c.png"))


def scored(*rows):
    """An evaluation's table with (defect type, score), threshold 10."""
    table = pd.DataFrame(rows, columns=["defect_type", "score"])
    table["label"] = (table["defect_type"] != "good").astype(int)
    flagged = table["score"] > 10
    defective = table["label"] == 1
    table["outcome"] = np.select(
        [flagged & defective, defective, flagged], ["hit", "miss", "false positive"], "correct rejection"
    )
    return table


def test_pick_shows_worst_errors_first_then_borderline_then_each_kind(evaluation):
    rows = [("good", 1.0), ("good", 2.0), ("good", 3.0), ("good", 50.0), ("good", 9.5)]
    rows += [("hole", 2.5), ("hole", 40.0), ("hole", 60.0), ("hole", 80.0), ("crack", 11.0), ("crack", 90.0)]
    table = scored(*rows)
    chosen = pick(dataclasses.replace(evaluation, scores=table, threshold=10.0), 6)
    assert chosen[:2] == [5, 3]  # the worst miss, the worst false positive
    assert chosen[2:4] == [4, 9]  # 9.5 and 11 are closest to 10
    assert len(chosen) == len(set(chosen)) == 6
    everything = pick(dataclasses.replace(evaluation, scores=table, threshold=10.0), 99)
    assert sorted(everything) == list(range(len(rows)))


def test_save_training_curves_draws_what_is_there(tmp_path):
    history = pd.DataFrame({"epoch": [5, 10], "train_loss": [0.4, 0.2], "loss_l1": [0.3, 0.1], "learning_rate": 1e-3})
    save_training_curves(history, tmp_path / "new" / "training.png")
    more = history.assign(validation_score=[0.6, float("nan")], loss_ssim=[0.1, 0.1])
    save_training_curves(more, tmp_path / "more.png")
    assert not np.array_equal(contents(tmp_path / "new" / "training.png"), contents(tmp_path / "more.png"))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["\U0001f529 bolt", "$a_b$ 5% $\\frac", "x" * 200])
def test_pictures_of_names_that_the_font_lacks_or_that_look_like_formulas_are_drawn_without_a_warning(
    evaluation, tmp_path, name
):
    scores = evaluation.scores.replace({"defect_type": {evaluation.scores["defect_type"].iloc[-1]: name}})
    named = dataclasses.replace(evaluation, category=name, scores=scores)
    assert all(file.is_file() for file in save_evaluation(named, tmp_path))
