"""Plain statistics of images: what each says of a change, on real photographs, and what it costs to have them again."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import convolve, gaussian_filter

from msad.data_io import image_statistics as module
from msad.data_io.image_statistics import STATISTICS, image_statistics, statistics_of_files
from msad.data_io.photographs import load_photograph


@pytest.fixture(scope="module", params=["coffee.png", "brick.png"])
def photograph(request):
    """Photographs of 400 × 600 and, of which all is looked at, 512 × 512 pixels."""
    return load_photograph(request.param)


def changes(before, after):
    one, other = image_statistics(before), image_statistics(after)
    return {name: other[name] / one[name] - 1 for name in STATISTICS}


def to_bytes(image):
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def test_darker_image_has_less_brightness_and_contrast_and_is_as_sharp(photograph):
    found = changes(photograph, to_bytes(photograph * 0.8))
    assert found["brightness"] == pytest.approx(-0.2, abs=0.01) == found["contrast"]
    assert abs(found["sharpness"]) < 0.02 and found["pixels"] == 0


def test_blurred_image_is_less_sharp_and_as_bright(photograph):
    found = changes(photograph, to_bytes(gaussian_filter(photograph.astype(float), (2, 2, 0))))
    assert found["sharpness"] < -0.25 and abs(found["brightness"]) < 0.01 and found["noise"] < -0.5


def test_noise_is_measured_in_grey_levels():
    grey = 128 + np.random.default_rng(0).normal(0, 5, (700, 900, 1)).repeat(3, axis=2)
    assert image_statistics(to_bytes(grey))["noise"] == pytest.approx(5, rel=0.03)
    assert image_statistics(to_bytes(grey[:300, :300]))["noise"] == pytest.approx(5, rel=0.05)


def test_statistics_of_a_small_image_are_those_of_their_papers():
    image = load_photograph("brick.png")[:200, :200]
    grey = image @ np.array([0.299, 0.587, 0.114])
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]])
    immerkaer = np.abs(convolve(grey, kernel))[1:-1, 1:-1].mean() * np.sqrt(np.pi / 2) / 6
    down, across = (part[1:-1, 1:-1] for part in np.gradient(grey))
    found = image_statistics(image)
    assert found["noise"] == pytest.approx(immerkaer, rel=1e-4)
    assert found["sharpness"] == pytest.approx(np.sqrt((down**2 + across**2).mean()) / grey.std(), rel=1e-4)
    assert (found["brightness"], found["pixels"]) == (pytest.approx(grey.mean(), rel=1e-5), 40000)


def test_part_of_a_large_image_stands_for_all_of_it(photograph):
    large = np.asarray(Image.fromarray(photograph).resize((2400, 1700), Image.Resampling.BICUBIC))
    found = changes(photograph, large)
    assert abs(found["brightness"]) < 0.02 and abs(found["contrast"]) < 0.03


@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 5, 3), (1, 600_000, 3)])
def test_image_without_inner_pixels_or_contrast_has_numbers(shape):
    found = image_statistics(np.full(shape, 7, np.uint8))
    assert np.isfinite([*found.values()]).all() and found["sharpness"] == found["noise"] == 0


def test_files_are_measured_once_for_the_same_contents(demo, category, tmp_path, monkeypatch):
    paths = sorted((demo / category / "train" / "good").iterdir())[:4]
    first = statistics_of_files(paths, directory=tmp_path)
    assert first["brightness"][2] == image_statistics(np.asarray(Image.open(paths[2]).convert("RGB")))["brightness"]
    monkeypatch.setattr(module, "decode", None)
    again = statistics_of_files(paths, directory=tmp_path)
    assert all(np.array_equal(first[name], again[name]) for name in STATISTICS)
