"""A job with a region of interest from training to bundle: whole images, tiles and straightened parts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from msad.bundle.bundles import Bundle
from msad.cluster.workers.job_worker import load_training_data
from msad.data_io.cache import load_images
from msad.models.base import AnomalyModel
from msad.models.errors import ModelError
from msad.models.registry import build
from msad.models.scorer import IMAGE_SCORE
from msad.models.synthesis.synthetic_defects import make_synthetic_defects
from msad.models.tiling import tiled
from msad.training.batches import make_batches
from msad.training.job_config import JobConfig
from msad.training.training_data import TrainingData
from msad.training.validation import validate
from tests.bolts import SIDE, bolts
from tests.training.train import train

CPU = torch.device("cpu")
MODELS = {
    "multiscale": {"base_width": 4, "depth": 2},
    "feature_ensemble": {"width": 8, "bottleneck_channels": 4, "rows": 100, "coarsest_stride": 16, "neighbourhood": 1},
    "feature_memory": {"rows": 100, "coarsest_stride": 8, "neighbourhood": 1},
    "feature_pyramid": {"width": 8, "bottleneck_channels": 4},
}


@pytest.fixture(scope="module")
def data(demo):
    """Bricks whose right third does not count, and is always as bright as nothing else."""
    images = np.array(load_images(sorted((demo / "brick" / "train" / "good").iterdir()), 64))
    images[:, :, 44:] = 255
    inside = np.zeros((64, 64), bool)
    inside[:, :40] = True
    defects = make_synthetic_defects(images[12:], seed=0, per_group=1, view_size=32, roi_HW=inside)
    return TrainingData(images[:12], images[12:], defects, roi_HW=inside)


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr("msad.training.batches.VIEWS_IN_ALL", 24)
    monkeypatch.setattr("msad.training.batches.EPOCH_IMAGES", 24)


def job(architecture, **settings):
    settings = {"image_size": 64, "epochs": 1, "evaluate_every": 1, "batch_size": 8, **settings}
    return JobConfig(category="brick", architecture=architecture, model=MODELS[architecture], **settings)


@pytest.mark.parametrize("tiling", [{}, {"tile": 32, "overlap": 16}])
@pytest.mark.parametrize("architecture", MODELS)
def test_region_goes_from_training_into_the_bundle(architecture, tiling, data, tmp_path, few):
    settings = job(architecture, tiling=tiling)
    fitted, _, _ = train(settings, data)
    assert np.array_equal(fitted.scorer.roi.inside_1HW[0].numpy(), data.roi_HW)
    thresholds = (fitted.threshold, settings, {}, fitted.pixel_threshold)
    bundle = Bundle.load(Bundle(fitted.model, fitted.scorer, *thresholds).save(tmp_path / "bundle"), "cpu")
    assert np.array_equal(bundle.roi, data.roi_HW) and "a region of interest alone, 62% of each image" in (
        (tmp_path / "bundle" / "MODEL_CARD.md").read_text()
    )
    image = data.train_NHWC[0].copy()
    image[20:40, 54:] = 0  # far outside
    before, after = bundle.predict([data.train_NHWC[0], image])
    # What a network sees of it from inside is little.
    assert abs(after.score - before.score) < 0.2 * (np.ptp(before.anomaly_map) + 1)
    assert (after.anomaly_map[:, 40:] == after.anomaly_map.min()).all()
    assert all(region.x < 40 for region in after.regions(threshold=0.0))
    picture = after.overlay()
    assert np.array_equal(picture[:, 44:], image[:, 44:] // 3)


@pytest.mark.parametrize("kind", ["none", "texture"])
@pytest.mark.parametrize("tile", [0, 32])
def test_nothing_is_corrupted_outside(kind, tile, data):
    settings = job("multiscale", augmentation={"kind": kind}, corruption={"probability": 1.0}, tiling={"tile": tile})
    model = tiled(build("multiscale", **MODELS["multiscale"]), settings.tiles)
    made = make_batches(settings, data, model, CPU)
    generator = torch.Generator().manual_seed(0)
    changed = 0
    for images in made.stream(torch.arange(24).split(8)):
        clean, corrupted, mask_B1HW = made.draw(images, generator)
        bright_B1HW = clean.amin(dim=1, keepdim=True) > 0.95  # which is outside, wherever the augmentation has it
        assert torch.equal(clean[bright_B1HW.expand_as(clean)], corrupted[bright_B1HW.expand_as(clean)])
        assert not mask_B1HW[bright_B1HW].any()
        changed += int(mask_B1HW.flatten(1).any(dim=1).sum())
    assert changed > 8


@pytest.mark.parametrize("tile", [0, 32])
def test_memory_remembers_nothing_of_what_is_outside(tile, data, few):
    settings = job("feature_memory", tiling={"tile": tile}, augmentation={"kind": "none"})
    settings = settings.with_parameters({"model/light": "kept"})
    distances = {}
    for name, seen in (("region", data), ("whole", dataclasses.replace(data, roi_HW=None))):
        model = train(settings, seen)[0].model
        maps = model.anomaly_maps(torch.ones(1, 3, 64, 64))["memory"]  # as bright as what is outside
        usual = model.anomaly_maps(torch.from_numpy(data.train_NHWC[:1]).permute(0, 3, 1, 2).float() / 255)["memory"]
        distances[name] = float(maps[..., 24:40, 24:40].mean() / usual[..., :32].mean())
    assert distances["region"] > 1.2 * distances["whole"]


def test_parts_that_are_straightened_keep_the_region_of_the_photograph():
    images = bolts(np.linspace(0, 345, 24))
    inside = np.zeros((SIDE, SIDE), bool)
    inside[:, : SIDE // 2] = True
    defects = make_synthetic_defects(images[16:], seed=0, per_group=1, roi_HW=inside)
    data = TrainingData(images[:16], images[16:], defects, roi_HW=inside)
    fitted, _, _ = train(job("feature_memory", image_size=SIDE), data)
    assert fitted.model.pose.cutout and np.array_equal(fitted.scorer.roi.inside_1HW[0].numpy(), inside)
    bundle = Bundle(fitted.model, fitted.scorer, fitted.threshold, job("feature_memory", image_size=SIDE))
    found = bundle.predict(images[3]).anomaly_map
    assert (found[:, SIDE // 2 :] == found.min()).all() and np.ptp(found[:, : SIDE // 2]) > 0


def test_model_that_scores_whole_images_alone_is_refused(data):
    class WholeImages(AnomalyModel):
        map_names = (IMAGE_SCORE,)
        loss_terms, default_loss_weights = (), {}

        def _losses(self, *_):
            raise NotImplementedError

        def _maps(self, image):
            return {IMAGE_SCORE: image.mean(dim=(1, 2, 3), keepdim=True).expand(-1, 1, 64, 64)}

    model = WholeImages()
    made = make_batches(job("multiscale"), data, model, CPU)
    with pytest.raises(ModelError, match="scores whole images alone: it cannot keep to a region of interest"):
        validate(model, made, data, job("multiscale"))


def test_region_is_read_with_the_images_in_their_own_rectangle(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "data" / "strip" / "train" / "good"
    folder.mkdir(parents=True)
    for index in range(8):
        Image.fromarray(rng.integers(0, 256, (120, 60, 3), np.uint8)).save(folder / f"{index}.png")
    mask = np.zeros((120, 60), np.uint8)
    mask[60:] = 255
    Image.fromarray(mask).save(folder.parents[1] / "roi.png")
    settings = dataclasses.replace(job("multiscale", image_size="96x48"), category="strip")
    data = load_training_data(settings, tmp_path / "data", tmp_path / "cache")
    assert data.roi_HW.shape == (96, 48) and data.roi_HW[48:].all() and not data.roi_HW[:48].any()
    assert not data.synthetic.masks[:, :48].any() and data.identity.roi
    (folder.parents[1] / "roi.png").unlink()
    without = load_training_data(settings, tmp_path / "data", tmp_path / "cache")
    assert without.roi_HW is None and without.synthetic.masks[:, :48].any()
    assert data.identity.changes_from(without.identity) == ["the region of interest was added"]
    assert without.identity.changes_from(data.identity) == ["the region of interest was removed"]
    assert data.identity.digest != without.identity.digest
