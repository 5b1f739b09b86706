"""The detector as one network: Pillow's resizing, and every scoring as an exported graph."""

from __future__ import annotations

from itertools import cycle, product
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from msad.models.base import AnomalyModel
from msad.models.detector import Detector, resampling_matrix
from msad.models.scorer import CALIBRATIONS, REDUCTIONS, Scoring, fit_scorer


class Channels(AnomalyModel):
    """The least that gives two maps."""

    map_names: ClassVar[tuple[str, ...]] = ("red", "blue")

    def _losses(self, clean, corrupted, mask_B1HW, terms):
        raise NotImplementedError

    def _maps(self, image):
        return {"red": image[:, :1], "blue": image[:, 2:]}


def photographs(count, height, width, seed=0):
    """Smooth at one side, noisy at the other: uint8 N×H×W×3."""
    noise = np.random.default_rng(seed).integers(0, 256, (count, height, width, 3))
    return torch.from_numpy((noise * np.linspace(0.05, 1, width)[None, None, :, None]).astype(np.uint8))


@pytest.mark.parametrize(
    "source", [(900, 700), (70, 90), (48, 64), (31, 200), (128, 192), (64, 64), (1, 5), (33, 2100)]
)
@pytest.mark.parametrize("sides", [(64, 64), (96, 32)])
def test_resized_image_is_pillows_to_the_last_grey_level(source, sides):
    seen = {}

    class Keeps(Channels):
        def _maps(self, image):
            seen["image"] = image
            return super()._maps(image)

    scorer = fit_scorer(Scoring({"red": 1.0}), {"red": torch.rand(2, 1, *sides)})
    [image] = photographs(1, *source).numpy()
    Detector(Keeps(), scorer, 0.0, 0.0, sides)(torch.from_numpy(image)[None])
    across = Image.fromarray(image).resize((sides[1], source[0]), Image.Resampling.BILINEAR)
    pillow = np.asarray(across.resize((sides[1], sides[0]), Image.Resampling.BILINEAR))
    assert np.array_equal(seen["image"][0].permute(1, 2, 0).numpy(), pillow / np.float32(255))


def test_resampling_matrix_is_the_identity_at_the_same_size():
    assert torch.equal(resampling_matrix(7, 7, "down"), torch.eye(7, dtype=torch.float64))


@pytest.mark.parametrize(("source", "target"), [(64, 200), (200, 64), (64, 63), (1, 9)])
def test_resampling_matrix_fits_maps_as_torch_does(source, target):
    map_SS = torch.randn(source, source)
    [[expected]] = nn.functional.interpolate(map_SS[None, None], (target, target), mode="bilinear", antialias=True)
    down_TS, across_ST = (resampling_matrix(source, target, direction).float() for direction in ("down", "across"))
    assert (down_TS @ map_SS @ across_ST).numpy() == pytest.approx(expected.numpy(), abs=1e-4)


def test_every_scoring_is_exported_with_any_number_and_size_of_images():
    model, images = Channels(), photographs(12, 40, 40, seed=1)
    maps = model.anomaly_maps(images.permute(0, 3, 1, 2)[..., :32, :24] / 255)
    choices = product(REDUCTIONS, CALIBRATIONS)
    varied = cycle([({"red": 1.0}, 0.0), ({"red": 1.0, "blue": 2.0}, 0.7), ({"blue": 1.0}, 0.7)])
    scorings = [
        Scoring(weights, smoothing, reduction, calibration)
        for (reduction, calibration), (weights, smoothing) in zip(choices, varied, strict=False)
    ]
    assert len(scorings) == len(REDUCTIONS) * len(CALIBRATIONS)
    detectors = nn.ModuleList(Detector(model, fit_scorer(one, maps), 0.0, 0.1, (32, 24)) for one in scorings)

    class Every(nn.Module):
        """All scorings in one graph: tracing them one by one would take as many times as long."""

        def __init__(self):
            super().__init__()
            self.detectors = detectors

        def forward(self, image):
            return [detector(image) for detector in self.detectors]

    open_sizes = dict.fromkeys(range(3), torch.export.Dim.DYNAMIC)
    with torch.no_grad():
        graph = torch.export.export(Every(), (images[:2],), dynamic_shapes=({**open_sizes},)).module()
    for batch in (images[:3], images[:1, :17], photographs(2, 90, 50)):
        for found, detector in zip(graph(batch), detectors, strict=True):
            for part, expected in zip(found, detector(batch), strict=True):
                assert torch.equal(part, expected)
