from __future__ import annotations

import contextlib
import os
import resource
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from msad.data_io.cache import load_images
from msad.data_io.decode import Header, decode, decode_mask, read_header, resize
from msad.data_io.errors import DataError

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_decode_lossless_rgb_gives_the_pixels(tmp_path, suffix):
    Image.fromarray(RGB).save(tmp_path / f"a.{suffix}")
    assert np.array_equal(decode(tmp_path / f"a.{suffix}"), RGB)


def test_decode_jpeg_grey_gives_three_equal_channels(tmp_path):
    Image.fromarray(np.full((8, 8), 77, np.uint8)).save(tmp_path / "a.jpg")
    image = decode(tmp_path / "a.jpg")
    assert image.shape == (8, 8, 3) and image.dtype == np.uint8
    assert np.abs(image.astype(int) - 77).max() <= 1


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_decode_16_bit_grey_scales_by_the_full_range(tmp_path, suffix):
    levels = np.array([[0, 257, 32768, 65535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / f"a.{suffix}")
    assert decode(tmp_path / f"a.{suffix}")[0, :, 0].tolist() == [0, 1, 128, 255]


def test_decode_dark_16_bit_image_stays_dark_and_not_clipped(tmp_path):
    Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(tmp_path / "a.png")
    assert np.all(decode(tmp_path / "a.png") == 4)


def test_decode_rgba_is_composited_on_black(tmp_path):
    pixels = np.dstack([np.full((2, 2, 3), 200, np.uint8), np.array([[0, 255], [128, 255]], np.uint8)])
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png")[..., 0].tolist() == [[0, 200], [100, 200]]


def test_decode_palette_is_looked_up_and_its_transparent_colour_is_black(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), mode="P")
    image.putpalette([255, 0, 0, 0, 255, 0, 10, 20, 30])
    image.save(tmp_path / "opaque.png")
    image.save(tmp_path / "see_through.png", transparency=0)
    assert decode(tmp_path / "opaque.png").tolist() == [[[255, 0, 0], [0, 255, 0]], [[10, 20, 30], [0, 255, 0]]]
    assert decode(tmp_path / "see_through.png")[0, 0].tolist() == [0, 0, 0]


def test_decode_1_bit_gives_black_and_white(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png")[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_decode_exif_orientation_turns_image_and_header_alike(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    stripes = np.repeat(np.repeat(np.array([[0, 255]], np.uint8), 16, axis=0), 16, axis=1)
    Image.fromarray(np.dstack([stripes] * 3)).save(tmp_path / f"a.{suffix}", exif=exif)
    image = decode(tmp_path / f"a.{suffix}")
    assert image.shape == (32, 16, 3)
    assert image[:12].max() < 30 and image[-12:].min() > 225
    assert read_header(tmp_path / f"a.{suffix}") == Header(width=16, height=32, mode="RGB")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif"])
def test_decode_truncated_file_is_named(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"cut\.{suffix}: .*(truncated|damaged)"):
        decode(path)


def test_decode_png_with_a_flipped_byte_is_an_error(tmp_path):
    path = tmp_path / "bad.png"
    Image.fromarray(RGB).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.png"):
        decode(path)


def test_decode_file_of_no_bytes_says_that_it_is_empty(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(DataError, match=r"a\.png: is empty \(0 bytes\)"):
        decode(tmp_path / "a.png")


@pytest.mark.parametrize("content", [b"hello", b"GIF89a" + bytes(20), bytes(1000)])
def test_decode_something_else_says_it_is_no_image(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.png: cannot be decoded: not a PNG, JPEG, BMP, TIFF or WebP"):
        decode(tmp_path / "a.png")


def test_decode_missing_file_and_folder_are_told_apart(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        decode(tmp_path / "none.png")
    with pytest.raises(DataError, match="is a folder"):
        decode(tmp_path)


def test_decode_claim_of_too_many_pixels_is_refused_before_memory_is_taken(tmp_path):
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(100)))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b""))
    for read in (decode, read_header):
        with pytest.raises(DataError, match=r"bomb\.png: too large"):
            read(tmp_path / "bomb.png")


def test_decode_float_tiff_is_refused_because_its_range_is_unknown(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif: .*8 or 16 bit"):
        decode(tmp_path / "a.tif")


def test_decode_32_bit_values_beyond_16_bit_are_refused(tmp_path):
    Image.fromarray(np.array([[0, 70_000]], np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match="70000"):
        decode(tmp_path / "a.tif")


def test_decode_mask_8_bit_cuts_above_127(tmp_path):
    Image.fromarray(np.array([[0, 1, 127, 128, 255]], np.uint8)).save(tmp_path / "m.png")
    assert decode_mask(tmp_path / "m.png").tolist() == [[False, False, False, True, True]]


def test_decode_mask_1_bit_takes_what_is_set(tmp_path):
    Image.fromarray(np.array([[True, False, True]])).save(tmp_path / "m.png")
    assert decode_mask(tmp_path / "m.png").tolist() == [[True, False, True]]


@pytest.mark.parametrize("kind", ["grey", "palette", "16 bit", "rgb"])
def test_decode_mask_with_threshold_0_takes_every_value_but_0(tmp_path, kind):
    values = np.array([[0, 1, 2, 255]], np.uint8)
    if kind == "palette":
        image = Image.fromarray(values, mode="P")
        image.putpalette([0, 0, 0] * 256)  # all colours black: the index alone tells
    else:
        image = Image.fromarray({"grey": values, "16 bit": values.astype(np.uint16)}.get(kind, np.dstack([values] * 3)))
    image.save(tmp_path / "m.png")
    assert decode_mask(tmp_path / "m.png", threshold=0).tolist() == [[False, True, True, True]]


def test_resize_reduction_averages_and_keeps_no_alias():
    checkers = np.indices((64, 64)).sum(axis=0) % 2 * 255
    small = resize(np.dstack([checkers.astype(np.uint8)] * 3), 8)
    assert small.shape == (8, 8, 3) and small.dtype == np.uint8
    assert np.abs(small.astype(int) - 127).max() <= 3


def test_resize_oblong_image_becomes_square_without_overshoot():
    edge = np.zeros((30, 90, 3), np.uint8)
    edge[:, 45:] = 200
    small = resize(edge, 16)
    assert small.shape == (16, 16, 3) and small.max() == 200
    assert np.all(np.diff(small[8, :, 0].astype(int)) >= 0)


def test_decode_real_bottle_gives_900_by_900(real_root):
    path = next((real_root / "bottle" / "train" / "good").iterdir())
    assert decode(path).shape == (900, 900, 3)
    assert read_header(path) == Header(900, 900, "RGB")


def claim(kind: str) -> bytes:
    """Return a file of a few bytes whose header claims 100,000 × 100,000 pixels or more."""
    if kind == "bmp":
        header = struct.pack("<IiiHHIIiiII", 40, 100_000, 100_000, 1, 24, 0, 0, 0, 0, 0, 0)
        return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header
    if kind == "tif":
        values = {
            256: 2**31 - 1,
            257: 2**31 - 1,
            258: 8,
            259: 1,
            262: 1,
            273: 8,
            277: 1,
            278: 2**31 - 1,
            279: 2**31 - 1,
        }
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items())
        return b"II*\x00" + struct.pack("<IH", 8, len(values)) + entries + bytes(4)
    frame = struct.pack(">BHHBBBBBBBBBB", 8, 65_500, 65_500, 3, 1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0)
    return b"\xff\xd8\xff\xc0" + struct.pack(">H", len(frame) + 2) + frame + b"\xff\xd9"


@pytest.mark.parametrize("kind", ["bmp", "tif", "jpg"])
def test_decode_claims_of_every_format_are_refused_in_bounded_memory(tmp_path, kind):
    (tmp_path / f"bomb.{kind}").write_bytes(claim(kind))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in (decode, read_header):
        with pytest.raises(DataError, match=rf"bomb\.{kind}: (too large|cannot be decoded).*; (crop|replace)"):
            read(tmp_path / f"bomb.{kind}")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_decode_png_whose_text_unpacks_to_gigabytes_is_refused_in_bounded_memory(tmp_path):
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(1 << 24)) for _ in range(16)) + packer.flush()  # 256 MB in 256 kB
    Image.fromarray(RGB).save(tmp_path / "plain.png")
    plain = (tmp_path / "plain.png").read_bytes()
    (tmp_path / "text.png").write_bytes(plain[:33] + chunk(b"zTXt", b"Comment\x00\x00" + packed) + plain[33:])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(DataError):  # Pillow leaves such a text away or refuses the file, by version
        assert np.array_equal(decode(tmp_path / "text.png"), RGB)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_decode_photograph_of_8k_is_no_bomb(tmp_path):
    strip = np.random.default_rng(0).integers(0, 256, (1, 7680, 3), np.uint8)
    Image.fromarray(np.repeat(strip, 4320, axis=0)).save(tmp_path / "8k.bmp")
    assert read_header(tmp_path / "8k.bmp") == Header(7680, 4320, "RGB")
    assert np.array_equal(decode(tmp_path / "8k.bmp")[[0, -1]], np.repeat(strip, 2, axis=0))


def test_decode_pipe_and_file_of_terabytes_are_refused_without_being_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with (tmp_path / "vast.png").open("wb") as file:
        file.truncate(1 << 40)
    for name, reason in (("pipe", "a pipe or a device"), ("vast", "too large")):
        for read in (decode, read_header, lambda path: load_images([path], 8, tmp_path / "cache")):
            with pytest.raises(DataError, match=rf"{name}\.png: {reason}"):
                read(tmp_path / f"{name}.png")
