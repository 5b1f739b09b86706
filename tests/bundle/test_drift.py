"""Drift: false alarms at the stated rate, changes found and named, and nothing said where nothing can be."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from scipy.stats import norm

from msad.bundle.bundles import Bundle
from msad.bundle.drift import FEWEST, RATE, compare, differences, holm
from msad.bundle.evaluation import evaluate
from msad.bundle.predict import format_outcome, predict_folder
from msad.data_io.cache import load_images
from msad.data_io.image_statistics import STATISTICS, statistics_of_files
from msad.data_io.splits import split_good_images


def drawn(rng, count, **changes):
    """Scores and statistics that depend on each other, as those of photographs do; a size that never changes."""
    light, rest = rng.normal(size=count), rng.normal(size=(5, count))
    values = {
        "score": rest[0] + 0.5 * light,
        "brightness": 150 + 5 * light,
        "contrast": 40 + 2 * light + rest[1],
        "sharpness": 0.2 + 0.01 * rest[2],
        "noise": 2 + 0.1 * light + 0.1 * rest[3],
        "pixels": np.full(count, 640_000.0),
    }
    return {name: changes.get(name, 1) * value for name, value in values.items()}


@pytest.mark.parametrize(("held_out", "images"), [(12, 10), (31, 40), (48, 300)])
def test_comparison_of_what_has_not_changed_tells_of_something_at_most_as_often_as_stated(held_out, images):
    rng, rate, told, runs = np.random.default_rng(held_out), 0.1, 0, 300
    for _ in range(runs):
        reference = drawn(rng, held_out)
        found = compare(reference, max(reference["score"]), drawn(rng, images), rate)
        told += bool(found.findings)
    assert told / runs <= rate + norm.ppf(0.99) * np.sqrt(rate * (1 - rate) / runs)


def test_change_is_found_and_named_with_its_size():
    rng = np.random.default_rng(0)
    reference = drawn(rng, 48)
    found = compare(reference, 3.0, drawn(rng, 41, brightness=0.92, pixels=4))
    assert (found.images, found.held_out, found.rate) == (41, 48, RATE)
    assert {"darker by 8 %", "more pixels by 300 %"} == {one.words for one in found.findings}
    assert found.findings[0].p <= found.findings[1].p < RATE / 6 and "darker by 8 %, " in f"{found.words}, "
    sharp = compare(reference, 3.0, drawn(rng, 41, sharpness=0.8, noise=1.5))
    assert {one.words.rpartition(" by ")[0] for one in sharp.findings} == {"less sharp", "more noise"}
    wider = drawn(rng, 400)
    wider["brightness"] = 150 + 6 * (wider["brightness"] - 150)
    assert "brightness is spread otherwise (1" in compare(reference, 3.0, wider).words


def test_more_alarms_than_the_held_out_images_had_are_told_and_fewer_are_not():
    rng = np.random.default_rng(1)
    reference, seen = drawn(rng, 48), drawn(rng, 60)
    seen["score"][:15] += 9
    found = compare(reference, 4.0, seen)
    assert any(one.name == "alarms" and "25% of the images raise an alarm" in one.words for one in found.findings)
    assert not any(one.name == "alarms" for one in compare(seen, 4.0, reference).findings)


@pytest.mark.parametrize("images", [1, FEWEST - 1])
def test_single_images_and_few_of_them_never_tell(images):
    seen = {name: [1e9] * images for name in ("score", *STATISTICS)}
    found = compare(drawn(np.random.default_rng(0), 48), 3.0, seen)
    assert not found.findings and f"fewer than {FEWEST}" in found.reason


def test_holms_correction_leaves_those_before_the_first_that_is_too_large():
    assert holm([0.04, 0.001, 0.011, 0.2], 0.05) == [1, 2]  # 0.05 / 4, / 3; 0.04 is above 0.05 / 2
    assert holm([0.02, 0.03], 0.05) == [0, 1] and holm([0.03, 0.04], 0.05) == [] and holm([], 0.05) == []


@pytest.fixture(scope="module")
def measured(bundle, demo, category):
    """A bundle that knows its held-out good images."""
    split = split_good_images(demo, category, seed=0)
    paths = [*split.validation_paths, *split.train_paths]  # so few alone would tell of nothing but the plainest change
    scores = bundle.score_images(load_images(paths, bundle.job.image_size))[1]
    held_out = {name: one.tolist() for name, one in statistics_of_files(paths).items()} | {"score": scores.tolist()}
    parts = bundle.model, bundle.scorer, bundle.threshold, bundle.job
    return Bundle(*parts, bundle.provenance | {"held_out": held_out}, bundle.pixel_threshold)


@pytest.fixture
def darker(demo, category, tmp_path):
    """The good test images, of which there are too few for much, in two copies, darker by 20 %."""
    (tmp_path / "darker").mkdir()
    for path in sorted((demo / category / "test" / "good").iterdir()):
        image = np.asarray(Image.open(path).convert("RGB")) * 0.8
        for copy in range(2):
            Image.fromarray(image.astype(np.uint8)).save(tmp_path / "darker" / f"{copy}-{path.name}")
    return tmp_path / "darker"


def test_predict_tells_of_a_change_and_keeps_it_in_prediction_json(measured, darker, demo, category, tmp_path):
    result = predict_folder(measured, [darker], tmp_path / "out")
    [line] = [line for line in format_outcome(result, tmp_path / "out").splitlines() if line.startswith("drift: ")]
    assert "darker by 20 %" in line and f"`msad drift {tmp_path / 'out'}` shows since when" in line
    told = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert told["drift"] == result.drift.to_dict() and told["drift"]["rate"] == RATE
    assert told["held_out"] == measured.provenance["held_out"]
    again = predict_folder(measured, [darker], tmp_path / "out")
    assert again.earlier == again.scored and again.drift == result.drift
    usual = predict_folder(measured, [demo / category / "test" / "good"], tmp_path / "usual")
    assert not usual.drift.findings and "drift" not in format_outcome(usual, tmp_path / "usual")
    assert measured.drift(measured.predict(sorted(darker.iterdir()))) == result.drift


def test_older_bundle_says_that_it_cannot_tell(bundle, darker, tmp_path):
    result = predict_folder(bundle, [darker], tmp_path / "out")
    assert not result.drift.findings and "before its held-out images were measured" in result.drift.reason
    assert json.loads((tmp_path / "out" / "prediction.json").read_text())["held_out"] is None


def test_evaluation_remarks_good_test_images_unlike_the_held_out_ones(measured, demo, category, darker, tmp_path):
    root = tmp_path / "data"
    for path in [*sorted((demo / category).rglob("*.png"))]:
        target = root / path.relative_to(demo)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    for path in (root / category / "test" / "good").iterdir():
        path.unlink()
    for path in darker.iterdir():
        (root / category / "test" / "good" / path.name).write_bytes(path.read_bytes())
    [remark] = [one for one in evaluate(measured, root, category, None).remarks if "unlike" in one]
    assert remark.startswith("the good test images are unlike the held-out good ones: ") and "darker by 20 %" in remark
    assert not any("unlike" in one for one in evaluate(measured, demo, category, None).remarks)


def test_good_test_images_of_screw_are_darker(industrial):
    if not (industrial / "screw").is_dir():
        pytest.skip("no screw among the real images")
    split = split_good_images(industrial, "screw", seed=0)
    held_out = statistics_of_files(split.validation_paths) | {"score": np.zeros(len(split.validation_paths))}
    good = sorted((industrial / "screw" / "test" / "good").iterdir())
    seen = statistics_of_files(good) | {"score": np.zeros(len(good))}
    found = compare(held_out, 1.0, seen)
    assert [one.words for one in found.findings if one.name == "brightness"] == ["darker by 7 %"]
    other = statistics_of_files(split.train_paths) | {"score": np.zeros(len(split.train_paths))}
    assert not compare(held_out, 1.0, other).findings
    assert {one.name for one in differences(held_out, 1.0, seen)} == {"alarms", "score", *STATISTICS}
