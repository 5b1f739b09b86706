from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from msad.bundle.bundles import Bundle
from msad.bundle.images import fit_map, fit_maps, to_array, to_network, to_tensor
from msad.data_io.remarks import ReadingRemarks
from msad.models.base import AnomalyModel
from msad.models.scorer import Scoring, fit_scorer
from msad.training.job_config import JobConfig


def test_fit_maps_of_several_sizes_are_those_of_each_alone_in_order():
    map_B1HW = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    sizes = [(40, 30), (16, 16), (40, 30), (7, 9)]
    fitted = fit_maps(map_B1HW, sizes)
    for one, map_1HW, size in zip(fitted, map_B1HW, sizes, strict=True):
        assert one.shape == size and one.dtype == np.float32
        np.testing.assert_allclose(one, fit_map(map_1HW, size), atol=1e-6)
    np.testing.assert_array_equal(fitted[1], map_B1HW[1, 0].numpy())


def test_fit_maps_keep_nothing_but_themselves():
    map_B1HW = torch.zeros(2, 1, 8, 8)
    first, _ = fit_maps(map_B1HW, [(8, 8)] * 2)
    map_B1HW.fill_(1)
    assert first.base is None and not first.any()


def test_to_network_tells_each_images_own_size_and_gives_the_networks():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((50, 20), (32, 32), (9, 64))]
    image_BCHW, sizes = to_network(
        [images[0], Image.fromarray(images[1]), images[2]], (32, 32), torch.device("cpu"), ReadingRemarks()
    )
    assert sizes == [(50, 20), (32, 32), (9, 64)]
    assert image_BCHW.shape == (3, 3, 32, 32) and image_BCHW.dtype == torch.float32
    torch.testing.assert_close(image_BCHW[1], to_tensor(images[1][None])[0])
    assert image_BCHW.min() >= 0 and image_BCHW.max() <= 1
    tall_BCHW, _ = to_network(images, (50, 20), torch.device("cpu"), ReadingRemarks())
    assert tall_BCHW.shape == (3, 3, 50, 20)
    torch.testing.assert_close(tall_BCHW[0], to_tensor(images[0][None])[0])


class Red(AnomalyModel):
    """Finds anomalous what is red."""

    loss_terms, default_loss_weights, map_names = ("none",), {}, ("red",)

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))  # says on which device the model is

    def _losses(self, clean, corrupted, mask_B1HW, terms):
        raise NotImplementedError

    def _maps(self, image):
        return {"red": image[:, :1]}


@pytest.mark.parametrize("size", ["96x32", "32x96", 56])
def test_defect_is_marked_where_it_lies_on_a_long_photograph(size):
    photograph = np.zeros((250, 100, 3), np.uint8)
    photograph[190:220, 10:30] = 255, 0, 0
    job = JobConfig(category="any", architecture="baseline", image_size=size)
    scorer = fit_scorer(Scoring({"red": 1.0}, 1.0, "max", "position"), {"red": torch.rand(9, 1, *job.sides)})
    anomaly_map = Bundle(Red(), scorer, 0.5, job).predict(photograph).anomaly_map
    marked = anomaly_map > (anomaly_map.max() + anomaly_map.min()) / 2
    rows, columns = (np.nonzero(marked)[axis].mean() for axis in (0, 1))
    assert anomaly_map.shape == (250, 100) and abs(rows - 204.5) < 6 and abs(columns - 19.5) < 4
    assert marked[195:215, 14:26].all()


@pytest.mark.parametrize(
    "image",
    [
        *(np.zeros((4, 4), np.uint16), np.zeros((4, 4, 3), np.uint16), np.zeros((4, 4, 4), np.uint16)),
        *(np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4), np.uint8)),
    ],
)
def test_to_array_is_rgb_of_eight_bits(image):
    array = to_array(image)
    assert array.shape == (4, 4, 3) and array.dtype == np.uint8


def test_to_array_reads_arrays_as_of_their_depth():
    assert to_array(np.full((2, 2), 4095, np.uint16), 12).min() == 255
    assert to_array(np.full((2, 2, 3), 1023, np.uint16), 10).min() == 255
    assert to_array(np.full((2, 2), 4095, np.uint16)).max() == 16
