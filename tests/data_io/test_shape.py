from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from msad.data_io.cache import load_images
from msad.data_io.check import check
from msad.data_io.decode import decode, height_width, resize, resize_mask
from msad.data_io.errors import DataError
from msad.data_io.photographs import load_photograph, load_textures
from msad.data_io.shape import common_ratio, find_ratio, fitted_size, parse_size, plain_size


@pytest.mark.parametrize(
    ("given", "size"),
    [(256, 256), ("256", 256), ("416x160", "416x160"), (" 416 × 160 ", "416x160"), ("256X256", "256x256")],
)
def test_parse_size_takes_numbers_and_height_x_width(given, size):
    assert parse_size(given) == size


@pytest.mark.parametrize("given", ["", "416*160", "416x", "x160", "1x2x3", "-256", 256.5, True, None, "tall"])
def test_parse_size_bad_value_says_what_may_be_given(given):
    with pytest.raises(DataError, match="one number, as 256, or height and width, as 416x160"):
        parse_size(given)


@pytest.mark.parametrize("given", [8, "0", "416x8", "15x15"])
def test_parse_size_too_small_side_is_refused(given):
    with pytest.raises(DataError, match="too small: every side must have at least 16 pixels"):
        parse_size(given)


def test_height_width_of_every_way_to_say_a_size():
    assert height_width(256) == height_width("256x256") == (256, 256)
    assert height_width("416x160") == height_width((416, 160)) == (416, 160)
    assert plain_size((416, 160)) == plain_size("416x160") == "416x160"
    assert plain_size("256x256") == plain_size((256, 256)) == plain_size(256) == 256


def test_common_ratio_of_one_shape_and_of_several():
    kolektor = [(1240 + 5 * step, 500) for step in range(8)]
    assert common_ratio(kolektor) == pytest.approx(2.515)
    assert common_ratio([(300, 400), (600, 800)]) == 0.75
    assert common_ratio([*kolektor, (1250, 650)]) is None
    assert common_ratio([(100, 300), (300, 100), (200, 200)]) is None and common_ratio([]) is None


@pytest.mark.parametrize(
    ("size", "ratio", "fitted"),
    [
        (256, 2.5, "416x160"),
        (256, 0.4, "160x416"),
        (256, 0.75, "224x288"),
        (512, 2.5, "800x320"),
        (256, 1.0, 256),
        (256, 1.14, 256),
        (256, 1 / 1.14, 256),
        (256, None, 256),
        (256, 40.0, "640x96"),  # no more than about 6 to 1
        (16, 6.0, 16),  # both sides would be 32
        ("256x256", 2.5, 256),  # what is given is taken
        ("100x300", None, "100x300"),
    ],
)
def test_fitted_size(size, ratio, fitted):
    assert fitted_size(size, ratio) == fitted


def test_fitted_size_has_about_the_pixels_of_the_square():
    for ratio in np.geomspace(1 / 6, 6, 41):
        height, width = height_width(fitted_size(256, ratio))
        assert height * width == pytest.approx(256**2, rel=0.2)
        assert height / width == pytest.approx(ratio, rel=0.2)


def test_fitted_size_of_tiles_is_a_square_where_they_would_not_fit():
    assert fitted_size(512, 2.5, tile=256) == "800x320" and fitted_size(512, 2.5, tile=320) == 512


def test_find_ratio_reads_headers_as_images_are_looked_at(tmp_path):
    image, turned = Image.new("RGB", (250, 100)), Image.Exif()
    turned[0x0112] = 6
    image.save(tmp_path / "wide.png")
    image.save(tmp_path / "turned.jpg", exif=turned)
    assert find_ratio([tmp_path / "wide.png"]) == 0.4 and find_ratio([tmp_path / "turned.jpg"]) == 2.5
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.png"):
        find_ratio([tmp_path / "broken.png"])


def test_check_tells_the_ratio_of_the_good_training_images_alone(demo, long):
    assert check(long, splits=("train",)).ratios == {"brick": 2.5}
    squares = check(demo).ratios
    assert set(squares.values()) == {1.0} and check(demo).to_dict()["ratios"] == squares


def test_rectangle_keeps_places_and_is_cached_apart_from_the_square(tmp_path):
    photograph = np.zeros((250, 100, 3), np.uint8)
    photograph[200:220, 10:30] = 255
    Image.fromarray(photograph).save(tmp_path / "one.png")
    tall = load_images([tmp_path / "one.png"], "80x32", tmp_path / "cache")
    assert tall.shape == (1, 80, 32, 3)
    assert np.array_equal(tall[0], resize(decode(tmp_path / "one.png"), (80, 32)))
    rows, columns = np.nonzero(tall[0, ..., 0] > 127)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (64, 69, 3, 9)
    mask = resize_mask(photograph[..., 0] > 0, "80x32")
    assert mask.shape == (80, 32) and np.array_equal(mask, tall[0, ..., 0] > 127)
    assert load_images([tmp_path / "one.png"], 32, tmp_path / "cache").shape == (1, 32, 32, 3)


def test_textures_of_a_rectangle_are_cut_and_not_squeezed():
    tall, photograph = load_textures((96, 32)), load_photograph("brick.png")  # 512 × 512, the first of them
    assert tall.shape == (48, 96, 32, 3)
    whole = resize(photograph[:, 512 - round(512 / 3) :], (96, 32))  # the last corner's crop is the largest
    assert np.array_equal(tall[3], whole)
