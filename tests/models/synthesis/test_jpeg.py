from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from msad.models.synthesis.jpeg import jpeg


def by_libjpeg(image_HWC: np.ndarray, quality: int) -> np.ndarray:
    Image.fromarray(image_HWC).save(file := io.BytesIO(), "JPEG", quality=quality)
    return np.asarray(Image.open(file)).astype(float)


def ours(image_HWC: np.ndarray, quality: float) -> np.ndarray:
    image_13HW = torch.from_numpy(image_HWC).permute(2, 0, 1)[None].float() / 255
    return (jpeg(image_13HW, torch.tensor([float(quality)]))[0].permute(1, 2, 0) * 255).numpy().astype(float)


@pytest.mark.parametrize("quality", [40, 75, 90])
@pytest.mark.parametrize("size", [(64, 96), (61, 77)])
def test_jpeg_loses_what_libjpeg_loses(quality, size):
    image = np.ascontiguousarray(data.astronaut()[100 : 100 + size[0], 150 : 150 + size[1]])
    wanted, made = by_libjpeg(image, quality), ours(image, quality)
    lost = np.sqrt(np.square(wanted - image).mean())
    assert np.sqrt(np.square(made - wanted).mean()) < 0.5 * lost
    assert np.sqrt(np.square(made - image).mean()) == pytest.approx(lost, rel=0.1)


def test_jpeg_of_grey_images_is_that_of_libjpeg():
    grey = np.repeat(data.camera()[100:164, 100:196, None], 3, axis=2)
    difference = np.abs(ours(grey, 80) - by_libjpeg(grey, 80))
    assert (
        np.quantile(difference, 0.99) <= 2 and np.abs(by_libjpeg(grey, 80) - grey).mean() > 1.5
    )  # a tie goes either way


def test_jpeg_takes_each_image_at_its_quality_and_flat_ones_as_they_are():
    image = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)).expand(-1, 3, -1, -1)
    both = jpeg(image.expand(2, -1, -1, -1), torch.tensor([30.0, 95.0]))
    assert torch.equal(both[1:], jpeg(image, torch.tensor([95.0])))
    assert (both[0] - image).abs().mean() > 1.5 * (both[1] - image).abs().mean()
    flat = torch.full((1, 3, 20, 20), 100 / 255)
    torch.testing.assert_close(jpeg(flat, torch.tensor([90.0])), flat, rtol=0, atol=1 / 255)
