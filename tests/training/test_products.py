"""One network for several products: equal parts of every batch, and each product's own pose, scoring and thresholds."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

from msad.bundle.bundles import Bundle
from msad.models import registry
from msad.models.registry import build
from msad.models.synthesis.synthetic_defects import make_synthetic_defects
from msad.training.batches import FeatureBatches
from msad.training.job_config import JobConfig
from msad.training.loop import fit_products
from msad.training.products import Products
from msad.training.training_data import TrainingData
from tests.bolts import SIDE, bolts
from tests.training.test_self_training import NAME, Memory
from tests.training.train import train

CPU = torch.device("cpu")


def data_of(images, roi=None):
    few = make_synthetic_defects(images[-4:], seed=0, per_group=1, roi_HW=roi)
    return TrainingData(images[:-4], images[-4:], few, roi_HW=roi)


@pytest.fixture(scope="module")
def plain():
    """Two products of one size, 12 and 6 images to train on, the one dark and the other bright."""
    rng = np.random.default_rng(0)
    base = np.tile(np.linspace(40, 90, 32)[:, None, None], (1, 32, 3))
    dark, bright = (
        (base + more + rng.integers(-5, 5, (n, 32, 32, 3))).astype(np.uint8) for more, n in ((0, 16), (120, 10))
    )
    return [data_of(dark), data_of(bright)]


@pytest.fixture(scope="module")
def posed():
    """Long parts at any angle, and a product that fills the picture, of which only the upper half counts."""
    roi = np.zeros((SIDE, SIDE), bool)
    roi[: SIDE // 2] = True
    cloth = np.random.default_rng(1).integers(90, 130, (12, SIDE, SIDE, 3)).astype(np.uint8)
    return [data_of(bolts(np.linspace(0, 330, 16))), data_of(cloth, roi)]


def job(architecture="multiscale", **settings):
    model = {"base_width": 4, "depth": 2} if architecture == "multiscale" else settings.pop("model", {})
    values = {"epochs": 3, "evaluate_every": 1, "batch_size": 5, "image_size": 32, "model": model}
    return JobConfig(category="both", architecture=architecture, **{**values, **settings})


def fit(job, data, checkpoint=None):
    reports, states = [], []

    def report(metrics, state):
        reports.append(metrics)
        states.append(copy.deepcopy(state))

    return fit_products(job, data, device=CPU, report=report, get_checkpoint=lambda: checkpoint), reports, states


def test_every_batch_has_as_many_images_of_each_product(plain):
    products = Products(job(augmentation={"kind": "none"}), plain, build("multiscale", base_width=4, depth=2), CPU)
    assert products.batch_size == 6 and len(products) == 12 + 6
    (batch,) = products.stream([torch.tensor([17, 3, 2, 8, 16, 5])])
    assert torch.equal(batch[:3], torch.from_numpy(plain[0].train_NHWC[[5, 3, 2]]))
    assert torch.equal(batch[3:], torch.from_numpy(plain[1].train_NHWC[[2, 4, 5]]))
    clean_BCHW, corrupted_BCHW, mask_B1HW = products.draw(batch, torch.Generator().manual_seed(0))
    assert (clean_BCHW.mean(dim=(1, 2, 3)) > 0.5).tolist() == [False] * 3 + [True] * 3
    assert corrupted_BCHW.shape == clean_BCHW.shape and mask_B1HW.shape == (6, 1, 32, 32)
    (single,) = products.stream([torch.tensor([4])])  # the last batch of an epoch
    assert len(products.draw(single, torch.Generator().manual_seed(0))[0]) == 1


def test_products_share_the_weights_and_each_has_figures_and_thresholds_of_its_own(plain, tmp_path):
    (dark, bright), reports, _ = fit(job(), plain)
    for name, value in dark.model.state_dict().items():
        assert torch.equal(value, bright.model.state_dict()[name])
    assert dark.threshold != bright.threshold and dark.pixel_threshold != bright.pixel_threshold
    assert dark.epoch == bright.epoch and dark.false_alarms.held_out == len(plain[0].validation_NHWC)
    for told in reports:
        assert told["validation_score"] == pytest.approx(np.mean([one["validation_score"] for one in told["products"]]))
    last = [one["best_objective"] for one in reports[-1]["products"]]
    assert [dark.validation["score"], bright.validation["score"]] == pytest.approx(last)
    settings = dataclasses.replace(job(), category="bright")
    kept = Bundle(bright.model, bright.scorer, bright.threshold, settings, pixel_threshold=bright.pixel_threshold)
    image = plain[1].validation_NHWC[0]
    assert Bundle.load(kept.save(tmp_path / "bundle"), "cpu").predict(image).score == kept.predict(image).score


def test_training_on_several_products_goes_on_from_a_checkpoint_as_if_nothing_had_happened(plain):
    whole, reports, states = fit(job(), plain)
    resumed, again, _ = fit(job(), plain, checkpoint=states[1])
    assert [one["epoch"] for one in again] == [3]
    assert again[0]["validation_score"] == pytest.approx(reports[2]["validation_score"], abs=1e-6)
    assert [one.threshold for one in resumed] == pytest.approx([one.threshold for one in whole], rel=1e-5)


def test_memory_of_several_products_straightens_the_parts_of_those_that_need_it(posed, monkeypatch):
    monkeypatch.setattr("msad.training.batches.VIEWS_IN_ALL", 24)
    settings = job("feature_memory", image_size=SIDE, model={"rows": 60}, epochs=1)
    (screws, cloth), _, _ = fit(settings, posed)
    assert screws.model.straightens and not cloth.model.straightens
    assert torch.equal(screws.model.memory.bank_RC, cloth.model.memory.bank_RC)
    assert screws.scorer.scoring.calibration == "none" and cloth.scorer.scoring.calibration == "position"
    assert screws.model.roi is None and cloth.model.roi is not None and cloth.scorer.roi is not None
    # Thresholds rest on all of each one's images: the training images by the memory as it would be without them.
    assert [len(one.good_scores) for one in (screws, cloth)] == [16, 12]
    alone, _, _ = train(settings, posed[1])
    assert cloth.validation["chance"] == alone.validation["chance"]


def test_memory_without_some_images_of_one_product_has_all_of_the_others(posed, monkeypatch):
    monkeypatch.setattr("msad.training.batches.VIEWS_IN_ALL", 24)
    settings = job("feature_memory", image_size=SIDE, model={"rows": 60}, epochs=1)
    model = build("feature_memory", rows=60)
    products = Products(settings, posed, model, CPU)
    products.adapt()
    first, second = (one.shown for one in products.batches)
    assert (first, second) == (2 * 12, 3 * 8)
    asked = []
    monkeypatch.setattr(type(model), "without", lambda _self, left_out_N, count: asked.append((left_out_N, count)))
    products.without(1, np.array([0, 4]))
    (left_out_N, count) = asked[0]
    assert count == first + second == model._images
    assert left_out_N.tolist() == [24, 28, 32, 36, 40, 44]


def test_ensemble_trains_on_batches_of_products_of_which_one_is_straightened(posed, monkeypatch):
    monkeypatch.setattr("msad.training.batches.VIEWS_IN_ALL", 24)
    monkeypatch.setattr("msad.training.batches.EPOCH_IMAGES", 6)
    settings = job("feature_ensemble", image_size=SIDE, model={"rows": 60, "width": 16, "bottleneck_channels": 4})
    (screws, cloth), reports, _ = fit(dataclasses.replace(settings, epochs=1), posed)
    assert screws.model.memory.straightens and not cloth.model.memory.straightens
    assert np.isfinite([screws.threshold, cloth.threshold, reports[0]["train_loss"]]).all()


def test_features_of_a_product_are_kept_as_those_of_it_alone(plain, monkeypatch):
    monkeypatch.setattr("msad.training.batches.VIEWS_IN_ALL", 6)
    kept = []

    def cached(name, make):
        kept.append(name)
        return make()

    watched = [dataclasses.replace(one, cached=cached) for one in plain]
    settings = job("feature_memory", model={"rows": 20})
    Products(settings, watched, build("feature_memory", rows=20), CPU)
    together = [name for name in kept if name.startswith("features")]
    kept.clear()
    for one in watched:
        FeatureBatches(settings, one, build("feature_memory", rows=20), CPU)
    assert together == [name for name in kept if name.startswith("features")] and len(together) == 2


def test_network_that_trains_itself_sees_the_images_of_all(plain, monkeypatch):
    monkeypatch.setitem(registry._OWN, NAME, Memory)
    seen = []
    monkeypatch.setattr(Memory, "fit", lambda _self, images_NHWC, **_: seen.append(len(images_NHWC)))
    monkeypatch.setattr(Memory, "_maps", lambda _self, image: {"difference": image.mean(dim=1, keepdim=True)})
    fitted, reports, _ = fit(job(NAME), plain)
    assert seen == [18] and len(fitted) == 2 and len(reports[-1]["products"]) == 2
    assert fitted[0].threshold < fitted[1].threshold  # bright images have bright maps


@pytest.mark.parametrize(("steps", "shown"), [(0, 12 + 6), (4, 2 * 6), (16, 6 * 6), (10, 4 * 6)])
def test_steps_say_how_many_images_of_each_product_an_epoch_shows(steps, shown, plain):
    products = Products(job(steps=steps), plain, build("multiscale", base_width=4, depth=2), CPU)
    order = list(products.order())
    assert len(products) == shown and all(len(batch) == 6 for batch in order)
    times = (torch.cat(order) % 18).bincount(minlength=18)
    assert times.sum() == shown and times.max() - times.min() <= 1
