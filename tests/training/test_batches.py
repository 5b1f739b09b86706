from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from msad.data_io.cache import cached_arrays
from msad.models.registry import build
from msad.models.synthesis.corruptions import CorruptionConfig
from msad.models.synthesis.synthetic_defects import make_synthetic_defects
from msad.training.batches import EPOCH_IMAGES, FeatureBatches, ImageBatches, features_name, make_batches
from msad.training.job_config import JobConfig
from msad.training.training_data import TrainingData
from msad.training.validation import anomaly_maps

CPU = torch.device("cpu")
JOB = JobConfig(category="any", architecture="feature_pyramid", image_size=64, batch_size=4)
SMALL = {"width": 8, "bottleneck_channels": 4}


@pytest.fixture(scope="module")
def data():
    images = np.random.default_rng(0).integers(0, 256, (7, 64, 64, 3), dtype=np.uint8)
    return TrainingData(images[:5], images[5:], make_synthetic_defects(images[5:], seed=0, per_group=1))


@pytest.fixture(scope="module")
def model():
    return build("feature_pyramid", **SMALL).eval()


def drawn(batches, index, seed=0, part=slice(None)):
    (batch,) = batches.stream([torch.as_tensor(index)])
    return batches.draw(batch, torch.Generator().manual_seed(seed), part)


def whole(features):
    parts = list(features)
    return [torch.cat([part[stage] for part in parts]) for stage in range(len(parts[0]))]


def test_make_batches_follows_the_encoder(data, model):
    assert isinstance(make_batches(JOB, data, model, CPU), FeatureBatches)
    job = dataclasses.replace(JOB, architecture="baseline")
    assert isinstance(make_batches(job, data, build("baseline", base_width=4), CPU), ImageBatches)


def test_draw_images_without_augmentation_are_the_images(data):
    job = dataclasses.replace(JOB, augmentation={"kind": "none"}, corruption={"probability": 1.0})
    batches = ImageBatches(job, data, build("baseline", base_width=4), CPU)
    clean, corrupted, mask = drawn(batches, torch.tensor([3, 1]))
    np.testing.assert_allclose(clean.permute(0, 2, 3, 1) * 255, data.train_NHWC[[3, 1]], atol=1e-3)
    assert mask.sum() > 0 and torch.equal((clean != corrupted).any(dim=1, keepdim=True) & (mask == 0), mask > 1)


@pytest.mark.parametrize("architecture", ["baseline", "feature_pyramid"])
def test_part_of_a_batch_is_drawn_as_in_all_of_it(architecture, data, model):
    job = dataclasses.replace(JOB, architecture=architecture, corruption={"probability": 0.7})
    own = model if architecture == "feature_pyramid" else build("baseline", base_width=4)
    batches, part = make_batches(job, data, own, CPU), slice(1, 4)
    index = torch.tensor([3, 1, 0, 4, 2])
    for one, other in zip(drawn(batches, index), drawn(batches, index, part=part), strict=True):
        for stage, of_part in zip(one, other, strict=True) if isinstance(one, tuple) else [(one, other)]:
            assert torch.equal(stage[part], of_part)


def test_features_of_validation_and_synthetic_images_are_the_encoder_s(data, model):
    batches = FeatureBatches(JOB, data, model, CPU)
    for kept, images in ((batches.validation(), data.validation_NHWC), (batches.synthetic(), data.synthetic.images)):
        wanted = model.encode(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
        for stage, features in enumerate(whole(kept)):
            torch.testing.assert_close(features, wanted[stage], atol=1e-4, rtol=1e-5)


def test_maps_that_a_model_is_judged_by_are_those_of_the_model_that_is_delivered(data, model):
    """Features in half precision moved scores in the third digit, and a threshold is one of these scores."""
    judged = anomaly_maps(model, FeatureBatches(JOB, data, model, CPU).validation())
    delivered = model.anomaly_maps(torch.from_numpy(data.validation_NHWC).permute(0, 3, 1, 2).float() / 255)
    for name, map_B1HW in judged.items():
        torch.testing.assert_close(map_B1HW, delivered[name], atol=1e-5, rtol=1e-4)


def test_draw_features_are_clean_where_the_mask_is_empty(data, model):
    batches = FeatureBatches(JOB, data, model, CPU)
    clean, corrupted, mask = drawn(batches, torch.arange(20))
    changed = torch.stack([(a != b).flatten(1).any(dim=1) for a, b in zip(clean, corrupted, strict=True)]).any(dim=0)
    assert mask.shape == (20, 1, 16, 16) and mask.min() >= 0 and mask.max() <= 1
    assert torch.equal(changed, mask.flatten(1).any(dim=1))
    assert 2 < changed.sum() < 18  # half of them, by chance


def test_draw_the_same_generator_gives_the_same_features(data, model):
    batches = FeatureBatches(JOB, data, model, CPU)
    one, other = (drawn(batches, torch.arange(6), seed=5) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one[1], other[1], strict=True))


def test_epoch_of_a_small_category_goes_round_several_times(data, model):
    batches = FeatureBatches(JOB, data, model, CPU)
    assert abs(len(batches) - EPOCH_IMAGES) <= len(data.train_NHWC)
    drawn(batches, [len(batches) - 1])  # the last one is there


def test_kept_features_are_computed_once_for_jobs_that_differ_in_training_only(data, model, tmp_path):
    made = []

    def cached(key, make):
        def counted():
            made.extend([key] * key.startswith("features"))
            return make()

        return cached_arrays(key, counted, tmp_path)

    kept = dataclasses.replace(data, cached=cached)
    first = FeatureBatches(JOB, kept, model, CPU)
    again = FeatureBatches(dataclasses.replace(JOB, learning_rate=0.1, model={"width": 16}), kept, model, CPU)
    assert len(made) == 1
    assert all(torch.equal(a, b) for a, b in zip(whole(first.clean()), whole(again.clean()), strict=True))
    FeatureBatches(dataclasses.replace(JOB, augmentation={"kind": "none"}), kept, model, CPU)
    assert len(set(made)) == 2


TILED = {"image_size": 64, "tiling": {"tile": 32}}


def test_draw_tiles_at_full_resolution(data):
    job = dataclasses.replace(JOB, augmentation={"kind": "none"}, corruption={"probability": 1.0}, **TILED)
    batches = ImageBatches(job, data, build("baseline", base_width=4), CPU)
    assert len(batches) == EPOCH_IMAGES  # five images, each shown forty times
    index = torch.arange(37, 45)
    clean, corrupted, mask = drawn(batches, index)
    assert clean.shape == corrupted.shape == (8, 3, 32, 32) and mask.shape == (8, 1, 32, 32)
    images = torch.from_numpy(data.train_NHWC).permute(0, 3, 1, 2).float() / 255
    places = set()
    for tile, image in zip(clean, images[index % 5], strict=True):  # of noise: a tile is found at one place only
        windows = image.unfold(1, 32, 1).unfold(2, 32, 1)
        (found,) = (windows - tile[:, None, None]).abs().amax(dim=(0, 3, 4)).lt(1e-4).nonzero().tolist()
        places.add(tuple(found))
    assert len(places) > 4
    whole, synthetic = (torch.cat(list(parts)) for parts in (batches.validation(), batches.synthetic()))
    assert whole.shape == (2, 3, 64, 64) and synthetic.shape == (18, 3, 64, 64)
    assert torch.cat(list(batches.clean())).shape == (EPOCH_IMAGES, 3, 32, 32)


def test_features_of_tiles_are_kept_and_validation_images_looked_at_whole(data, model, monkeypatch):
    monkeypatch.setattr("msad.training.batches.VIEWS_IN_ALL", 20)
    job = dataclasses.replace(JOB, **TILED)
    batches = FeatureBatches(job, data, model, CPU)
    clean, corrupted, mask = drawn(batches, torch.arange(8))
    shapes = [tuple(feature.shape[-2:]) for feature in model.encode(torch.rand(1, 3, 32, 32))]
    assert [tuple(f.shape[-2:]) for f in clean] == [tuple(f.shape[-2:]) for f in corrupted] == shapes
    assert mask.shape == (8, 1, *shapes[0])
    assert torch.cat(list(batches.validation())).shape == (2, 3, 64, 64)
    assert torch.cat(list(batches.synthetic())).shape == (18, 3, 64, 64)


def test_features_of_another_kind_of_device_or_count_are_others_and_written_out_defaults_are_not():
    name = features_name(JOB, 40, "cpu")
    assert name != features_name(JOB, 40, "cuda") and name != features_name(JOB, 400, "cpu")
    written = dataclasses.replace(JOB, corruption={"strength": CorruptionConfig().strength}, learning_rate=0.5)
    assert features_name(written, 40, "cpu") == name
    assert features_name(dataclasses.replace(JOB, corruption={"strength": 0.5}), 40, "cpu") != name
