"""The regions of a prediction are where the defect is in the image's own pixels, whatever the network looked at."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from msad.bundle.bundles import Bundle
from msad.models.base import AnomalyModel
from msad.models.pose import Pose
from msad.models.scorer import Scorer, Scoring, Statistics
from msad.models.tiling import TilingConfig, tiled
from msad.training.job_config import JobConfig
from tests.bolts import SIDE, bolt, bolts


class Dark(AnomalyModel):
    """Finds anomalous what is black; `pose` straightens the part first."""

    loss_terms, default_loss_weights, map_names = ("none",), {}, ("dark",)

    def __init__(self, pose=None):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))  # says on which device the model is
        self.pose = pose

    def _losses(self, clean, corrupted, mask_B1HW, terms):
        raise NotImplementedError

    def _maps(self, image):
        if self.pose is None:
            return {"dark": 1 - image[:, :1]}
        cut, back = self.pose.straighten(image)
        return {"dark": self.pose.put_back(1 - cut[:, :1], back)}


def make(image_size, model, **job):
    scorer = Scorer(Scoring({"dark": 1.0}), {"dark": Statistics(torch.zeros(1, 1, 1), torch.ones(1, 1, 1))})
    settings = JobConfig(category="any", architecture="baseline", image_size=image_size, **job)
    return Bundle(model, scorer, 0.7, settings, pixel_threshold=0.75)


def photograph(height, width, boxes):
    image = np.full((height, width, 3), 200, np.uint8)
    for x, y, w, h in boxes:
        image[y : y + h, x : x + w] = 0
    return image


@pytest.mark.parametrize(
    ("image_size", "tile"), [(64, 0), (96, 0), ("96x32", 0), ("32x96", 0), (64, 32), ("96x64", 32), (400, 0)]
)
def test_boxes_are_in_the_images_own_pixels(image_size, tile):
    model = tiled(Dark(), TilingConfig(tile=tile))
    boxes = [(150, 40, 60, 80), (30, 200, 40, 30)]  # the larger one first
    bundle = make(image_size, model, tiling={"tile": tile})
    found = bundle.predict(photograph(300, 240, boxes)).regions()
    assert len(found) == 2
    rows, columns = (300 / bundle.job.sides[0], 240 / bundle.job.sides[1])  # an edge is known to a pixel of the network
    for region, (x, y, width, height) in zip(found, boxes, strict=True):
        for value, wanted, unsure in (
            *((region.x, x, columns), (region.x + region.width, x + width, columns)),
            *((region.y, y, rows), (region.y + region.height, y + height, rows)),
        ):
            assert abs(value - wanted) <= max(1, unsure)
        assert region.mask.shape == (region.height, region.width) and region.mask.sum() == region.area
        assert 0.75 < region.mean <= region.peak <= 1 + 1e-6


def test_box_follows_the_orientation_that_a_file_states(tmp_path):
    image = Image.fromarray(photograph(200, 120, [(10, 20, 40, 30)]))
    exif = Image.Exif()
    exif[0x0112] = 6  # is shown turned by a quarter clockwise: 120 high, 200 wide
    image.save(tmp_path / "turned.png", exif=exif)
    prediction = make(64, Dark()).predict(tmp_path / "turned.png")
    [region] = prediction.regions()
    assert prediction.anomaly_map.shape == (120, 200)
    found = (region.x, region.y, region.width, region.height)
    assert np.allclose(found, (150, 10, 30, 40), atol=4)  # 200 - 20 - 30 from the left


@pytest.mark.parametrize("angle", [10, 75, 160, 290])
def test_box_of_a_straightened_part_is_where_the_defect_was(angle):
    pose = Pose(32)
    pose.learn(bolts(np.linspace(0, 345, 24)))
    assert pose.cutout is not None and pose.cutout != (SIDE, SIDE)
    small = bolt(angle)
    along, across = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    x, y = (round(SIDE / 2 + 15 * part) for part in (along, across))  # on the shaft
    small[y - 3 : y + 3, x - 3 : x + 3] = 0
    image = np.asarray(Image.fromarray(small).resize((3 * SIDE, 2 * SIDE), Image.Resampling.NEAREST))
    [region] = make(SIDE, Dark(pose)).predict(image).regions(smallest_area=20)
    middle = region.x + region.width / 2, region.y + region.height / 2
    assert np.allclose(middle, (3 * x, 2 * y), atol=6)
    assert region.width < 3 * 14 and region.height < 2 * 14


def test_smallest_area_and_threshold_of_the_map_can_be_chosen():
    prediction = make(120, Dark()).predict(photograph(120, 120, [(5, 5, 50, 50), (80, 80, 10, 10)]))
    assert [one.area for one in prediction.regions()] == [2500, 100]
    assert [one.area for one in prediction.regions(smallest_area=101)] == [2500]
    assert prediction.regions(threshold=1.0) == []
    assert len(prediction.regions(threshold=0.1)) == 1  # the background is above it


def test_notebook_names_the_largest_region():
    shown = make(120, Dark()).predict(photograph(120, 120, [(5, 9, 50, 40)]))._repr_html_()
    assert "regions: 1, the largest 50×40 pixels at x 5, y 9, peak 1" in shown
    assert "regions: 0<" in make(120, Dark()).predict(photograph(120, 120, []))._repr_html_()
