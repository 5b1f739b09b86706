"""Two bundles on one validation set: which images, which defects, and what a bundle as it is gets for them."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from msad.bundle import rescoring
from msad.bundle.bundles import Bundle
from msad.bundle.rescoring import NotComparable, rescore, validation_score
from msad.cluster.comparison import _compare
from msad.cluster.workers.task import Task
from msad.data_io.cache import digests
from msad.data_io.splits import split_good_images
from msad.models.synthesis.synthetic_defects import make_synthetic_defects
from msad.workspace import JobDirectory


class Stub:
    """Scores an image by its largest map value; the map is what a function makes of the image."""

    def __init__(self, anomaly_map):
        self._map = anomaly_map

    def predict(self, images, batch_size):
        maps = [self._map(image) for image in images]
        return [SimpleNamespace(score=float(part.max()), anomaly_map=part) for part in maps]


@pytest.fixture(scope="module")
def good():
    """Ten even images with a little noise, 64×64."""
    rng = np.random.default_rng(0)
    return (120 + rng.integers(0, 4, (10, 64, 64, 3))).astype(np.uint8)


@pytest.fixture
def trained(make_bundle, demo, category):
    """Return a function that gives a bundle as one that was trained on some of the category's good images."""
    bundle = make_bundle(calibration="none")  # which any image size suits
    split = split_good_images(demo, category, 0)

    def trained(count, image_size=32):
        seen = [f"{digest}  name" for digest in digests(split.train_paths) + digests(split.validation_paths)[:count]]
        job = dataclasses.replace(bundle.job, image_size=image_size)
        return Bundle(bundle.model, bundle.scorer, bundle.threshold, job, {"identity": {"train": seen}})

    return trained


def test_models_of_different_regions_of_interest_do_not_compare(trained, demo, monkeypatch):
    monkeypatch.setattr(rescoring, "FEWEST_IMAGES", 2)
    challenger, champion = trained(0), trained(0)
    champion.provenance["identity"]["roi"] = "0123"
    with pytest.raises(NotComparable, match="look at different regions of interest"):
        rescore(challenger, champion, demo, "auto", None)


def test_map_that_knows_gets_all_and_one_that_guesses_what_guessing_gets(good):
    synthetic = make_synthetic_defects(good, 0)
    masks = {image.tobytes(): mask for image, mask in zip(synthetic.images, synthetic.masks, strict=True)}
    knows = Stub(lambda image: masks.get(image.tobytes(), np.zeros(image.shape[:2])).astype(float))
    assert validation_score(knows, good, synthetic) == 1.0
    rng = np.random.default_rng(0)
    guesses = [validation_score(Stub(lambda _: rng.random((64, 64))), good, synthetic) for _ in range(20)]
    prevalence = synthetic.masks.mean()
    assert np.mean(guesses) == pytest.approx(0.8 * 0.5 + 0.2 * prevalence, abs=0.03)


def test_both_meet_the_images_that_the_champion_was_not_trained_on(trained, demo, category, monkeypatch, tmp_path):
    monkeypatch.setattr(rescoring, "FEWEST_IMAGES", 4)
    count = len(split_good_images(demo, category, 0).validation_paths)
    same = rescore(trained(0), trained(count - 5), demo, "auto", tmp_path)
    assert (same.images, same.size) == (5, 32) and same.challenger == same.champion
    larger = rescore(trained(0), trained(count - 5, image_size=48), demo, "auto", tmp_path)
    assert larger.size == 48 and larger.defects == same.defects
    assert larger.words() == f"5 good images and {same.defects} synthetic defects at 48 pixels"
    tall = rescore(trained(0), trained(count - 5, image_size="64x16"), demo, "auto", tmp_path)
    assert tall.size == "64x32" and tall.defects == same.defects and tall.challenger != tall.champion


def test_too_few_images_that_the_champion_does_not_know_are_no_comparison(trained, demo, category, tmp_path):
    count = len(split_good_images(demo, category, 0).validation_paths)
    with pytest.raises(NotComparable, match=rf"trained on 3 of the {count} good images.*at least 10 others"):
        rescore(trained(0), trained(3), demo, "auto", tmp_path)


def test_models_that_read_other_grey_levels_are_no_comparison(trained, demo, tmp_path):
    champion = trained(0)
    champion.job = dataclasses.replace(champion.job, bit_depth=12)
    with pytest.raises(NotComparable, match="as of 12 bits, the new model as of 16"):
        rescore(trained(0), champion, demo, "auto", tmp_path)


def test_champion_that_does_not_say_what_it_was_trained_on_is_no_comparison(trained, bundle, demo, tmp_path):
    with pytest.raises(NotComparable, match="the champion does not say which images"):
        rescore(trained(0), bundle, demo, "auto", tmp_path)


def test_worker_scores_its_bundle_beside_one_that_it_is_sent(trained, demo, tmp_path, monkeypatch):
    challenger, sent = trained(0), trained(0).save(tmp_path / "champion")
    task = Task(
        job_id="final", job=challenger.job, dataset=demo, cache=tmp_path, directory=JobDirectory(tmp_path / "final")
    )
    challenger.save(task.directory.bundle)
    files = {path.name: path.read_bytes() for path in sent.iterdir()}
    assert "at least 10 others" in _compare(task.to_dict(), files)["reason"]
    monkeypatch.setattr(rescoring, "FEWEST_IMAGES", 4)
    result = _compare(task.to_dict(), files)
    assert result["challenger"] == result["champion"] > 0 and "synthetic defects at 32 pixels" in result["on"]
    assert "damaged" in _compare(task.to_dict(), {**files, "model.safetensors": b"x"})["reason"]
