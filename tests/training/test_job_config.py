"""One job's settings: checked, flattened, rebuilt."""

from __future__ import annotations

import dataclasses
import json

import pytest

from msad.training.job_config import JobConfig


def test_job_config_survives_json():
    job = JobConfig(category="a", architecture="b", model={"base_width": 8}, loss_weights={"l1": 0.5})
    assert JobConfig.from_dict(json.loads(json.dumps(job.to_dict()))) == job
    assert JobConfig.from_dict(job.to_dict()).digest() == job.digest()


def test_with_parameters_sets_slash_paths_and_keeps_the_rest():
    job = JobConfig(category="a", architecture="b", model={"depth": 2})
    changed = job.with_parameters({"model/base_width": 8, "learning_rate": 0.5})
    assert changed.model == {"depth": 2, "base_width": 8} and changed.learning_rate == 0.5
    assert changed.flat()["model/base_width"] == 8
    assert job.model == {"depth": 2} and job.digest() != changed.digest()


def test_job_config_with_several_bad_values_names_them_all():
    with pytest.raises(ValueError) as error:
        JobConfig(category="a", architecture="b", epochs=0, schedule="cosinus", learning_rate=-1.0)
    assert all(word in str(error.value) for word in ("epochs", "schedule", "learning_rate", "one_cycle"))


def test_steps_are_part_of_a_job_only_where_they_are_asked_for():
    job = JobConfig(category="a", architecture="b")
    asked = job.with_parameters({"steps": 2000})
    assert "steps" not in job.to_dict() and asked.flat()["steps"] == 2000 and asked.digest() != job.digest()
    assert JobConfig.from_dict(asked.to_dict()) == asked
    assert asked.with_parameters({"steps": 0}).digest() == job.digest()
    with pytest.raises(ValueError, match="steps is -1; it must be 0"):
        dataclasses.replace(job, steps=-1)


def test_unknown_setting_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"'lerning_rate'; did you mean 'learning_rate'"):
        JobConfig.from_dict({"category": "a", "architecture": "b", "lerning_rate": 1})
    with pytest.raises(ValueError, match="only model, loss_weights, corruption, augmentation, tiling have parts"):
        JobConfig(category="a", architecture="b").with_parameters({"optimizer/beta": 1})


def test_image_size_is_a_square_or_a_rectangle():
    square, tall = (JobConfig(category="a", architecture="b", image_size=size) for size in ("256", "416×160"))
    assert (square.image_size, square.sides, square.view, square.view_size) == (256, (256, 256), (256, 256), 256)
    assert (tall.image_size, tall.sides, tall.view, tall.view_size) == ("416x160", (416, 160), (416, 160), 258)
    assert JobConfig.from_dict(tall.to_dict()) == tall and tall.flat()["image_size"] == "416x160"
    tiled = dataclasses.replace(tall, tiling={"tile": 128})
    assert (tiled.view, tiled.view_size) == ((128, 128), 128)
    with pytest.raises(ValueError, match="tiling/tile is 160 and image_size 416x160: a tile must be smaller"):
        dataclasses.replace(tall, tiling={"tile": 160})
    for size in ("416x8", 8, "high", True, None):
        with pytest.raises(ValueError, match="image_size: "):
            JobConfig(category="a", architecture="b", image_size=size)


def test_tiling_is_checked_with_the_job():
    job = JobConfig(category="a", architecture="b", image_size=64).with_parameters({"tiling/tile": 32})
    assert (job.tiles.tile, job.tiles.pixels, job.view_size) == (32, 8, 32)
    assert JobConfig(category="a", architecture="b", image_size=64).view_size == 64
    for parameters, words in (
        ({"tiling/tile": 64}, "smaller than the image"),
        ({"tiling/tile": 32, "tiling/overlap": 20}, "overlap is 20"),
        ({"tiling/tile": "half"}, "whole numbers"),
    ):
        with pytest.raises(ValueError, match=words):
            JobConfig(category="a", architecture="b", image_size=64).with_parameters(parameters)
