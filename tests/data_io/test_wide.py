from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from msad.data_io.bit_depth import find_bit_depth
from msad.data_io.cache import load_images, load_notes
from msad.data_io.decode import convert, convert_values, decode, read_header, read_image
from msad.data_io.errors import DataError
from msad.data_io.wide import found_depth, smallest_depth, to_levels
from tests.data_io.conftest import python

TWELVE = np.random.default_rng(0).integers(0, 4096, (6, 9, 4)).astype(np.uint16)
TWELVE[..., 3] = 65535
KINDS = {2: 3, 6: 4, 4: 2, 0: 1}  # PNG's type of colour: channels


def png(values: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel, which Pillow writes of grey alone."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, channels = values.shape
    colour = next(kind for kind, count in KINDS.items() if count == channels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def scaled(values: np.ndarray, bit_depth: int = 12) -> np.ndarray:
    return np.rint(values * (255 / ((1 << bit_depth) - 1))).astype(int)


@pytest.mark.parametrize(
    ("largest", "depth"), [(0, 8), (255, 8), (256, 10), (1023, 10), (4095, 12), (4096, 14), (16384, 16), (65535, 16)]
)
def test_smallest_depth_holds_the_value(largest, depth):
    assert smallest_depth(largest) == depth


def test_found_depth_is_that_of_the_largest_file_and_16_where_all_have_8_bits():
    assert found_depth([None, 900, 3000]) == 12 and found_depth([None, None]) == 16 and found_depth([]) == 16


def test_to_levels_scales_by_the_depth_and_counts_what_is_above():
    levels, clipped = to_levels(np.array([[0, 16, 4095, 4096, 65535]], np.uint16), 12)
    assert levels.tolist() == [[0, 1, 255, 255, 255]] and clipped == 2


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_12_bit_grey_keeps_all_its_levels(tmp_path, suffix):
    Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)).save(tmp_path / f"a.{suffix}")
    image = read_image(tmp_path / f"a.{suffix}", bit_depth=12)
    assert len(np.unique(image.pixels)) == 256 and (image.largest, image.clipped) == (4095, 0)
    assert len(np.unique(decode(tmp_path / f"a.{suffix}"))) == 17  # as 16 bits


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_12_bit_png_of_every_kind_of_colour_is_read_to_its_last_bit(tmp_path, channels):
    values = TWELVE[..., :channels] if channels != 2 else TWELVE[..., 2:]
    (tmp_path / "a.png").write_bytes(png(values))
    image = read_image(tmp_path / "a.png", bit_depth=12)
    colour = values[..., :3] if channels > 2 else values[..., :1]
    assert np.array_equal(image.pixels, np.broadcast_to(scaled(colour), (6, 9, 3)))
    assert image.largest == colour.max() and read_header(tmp_path / "a.png").wide


@pytest.mark.parametrize(("order", "compression"), [("<", None), (">", None), ("<", "zlib"), (">", "zlib")])
def test_12_bit_colour_tiff_is_read_to_its_last_bit(tmp_path, order, compression):
    tifffile = pytest.importorskip("tifffile")
    look = {"byteorder": order, "compression": compression, "photometric": "rgb", "rowsperstrip": 2}
    tifffile.imwrite(tmp_path / "a.tif", TWELVE[..., :3], **look)
    assert np.array_equal(decode(tmp_path / "a.tif", bit_depth=12), scaled(TWELVE[..., :3]))


def test_wide_colour_in_memory_is_refused_where_pillow_has_cut_it(tmp_path):
    (tmp_path / "a.png").write_bytes(png(TWELVE[..., :3]))
    with pytest.raises(DataError, match="12 bits cannot be read"):
        convert(Image.open(tmp_path / "a.png"), bit_depth=12)
    assert np.array_equal(convert_values(TWELVE[..., :3], 12).pixels, scaled(TWELVE[..., :3]))


def test_files_of_8_bits_know_no_depth(tmp_path):
    Image.fromarray(np.full((4, 4), 200, np.uint8)).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", bit_depth=10)
    assert image.pixels.min() == 200 and image.largest is None


def test_cache_keeps_a_depth_apart_and_notes_what_was_clipped(tmp_path):
    paths = [tmp_path / "a.png", tmp_path / "b.tif"]
    Image.fromarray(np.full((8, 8), 1500, np.uint16)).save(paths[0])
    Image.fromarray(np.full((8, 8), 77, np.uint8)).save(paths[1])
    cache = tmp_path / "cache"
    assert load_images(paths, 4, cache, 10)[0].max() == 255 and load_images(paths, 4, cache, 12)[0].max() == 93
    assert load_notes(paths, 4, cache, 10).tolist() == [[1500, 64, 1], [-1, 0, 1]]
    assert find_bit_depth(paths) == 12


def test_large_line_scan_is_read_without_a_word_of_the_library_and_a_larger_one_refused_in_ours(tmp_path):
    for name, side in (("line.png", 10), ("long.png", 20)):
        Image.fromarray(np.zeros((side, side), np.uint8)).save(tmp_path / name)
    code = """
import sys
from pathlib import Path
from PIL import Image
from msad.data_io.decode import decode, read_header
Image.MAX_IMAGE_PIXELS = 90  # instead of 89 million
folder = Path(sys.argv[1])
read_header(folder / "line.png"), decode(folder / "line.png")
decode(folder / "long.png")
"""
    _, told = python(code, tmp_path).communicate()
    assert "Warning" not in told
    assert "long.png: too large (more than 180 pixels); crop or tile it first" in told.splitlines()[-1]
