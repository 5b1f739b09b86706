from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time

import numpy as np
import pytest

from msad.data_io import cache as image_cache
from msad.data_io.cache import digests, load_images
from msad.data_io.decode import decode, read_image, resize
from msad.data_io.errors import DataError
from tests.data_io.conftest import python, save_noise


@pytest.fixture
def paths(tmp_path):
    rng = np.random.default_rng(0)
    found = [tmp_path / "images" / f"{index}.png" for index in range(4)]
    for index, path in enumerate(found):
        save_noise(path, rng, height=20 + index)
    return found


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files that are decoded, as it happens."""
    names = []

    def spy(path, content=None, bit_depth=16):
        names.append(path.name)
        return read_image(path, content, bit_depth)

    monkeypatch.setattr(image_cache, "read_image", spy)
    return names


def test_load_images_gives_what_decode_and_resize_give(paths, tmp_path):
    images = load_images(paths, 16, tmp_path / "cache")
    assert isinstance(images, np.memmap) and images.shape == (4, 16, 16, 3) and images.dtype == np.uint8
    for image, path in zip(images, paths, strict=True):
        assert np.array_equal(image, resize(decode(path), 16))
    assert not images.flags.writeable


def test_load_images_warm_start_opens_no_image(paths, tmp_path):
    load_images(paths, 16, tmp_path / "cache")
    code = """
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from msad.data_io.cache import digests, load_images
cache, *paths = sys.argv[1:]
load_images(paths, 16, cache), digests(paths, cache)
assert any(path.startswith(cache) for path in opened)
assert not set(opened) & set(paths), opened
"""
    process = python(code, tmp_path / "cache", *paths)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors


def test_load_images_changed_file_is_decoded_again(paths, tmp_path):
    before = load_images(paths, 16, tmp_path / "cache")
    time.sleep(0.02)
    save_noise(paths[2], np.random.default_rng(99))
    after = load_images(paths, 16, tmp_path / "cache")
    assert np.array_equal(after[2], resize(decode(paths[2]), 16))
    assert not np.array_equal(before[2], after[2]) and np.array_equal(before[3], after[3])


def test_load_images_change_that_keeps_size_and_modification_time_is_seen(tmp_path):
    path = tmp_path / "a.bmp"
    save_noise(path, np.random.default_rng(0))
    state = path.stat()
    before = np.array(load_images([path], 16, tmp_path / "cache"))
    time.sleep(0.02)
    save_noise(path, np.random.default_rng(1))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (state.st_size, state.st_mtime_ns)
    assert not np.array_equal(before, load_images([path], 16, tmp_path / "cache"))


def test_load_images_moved_dataset_is_not_decoded_again(paths, tmp_path, decoded):
    load_images(paths, 16, tmp_path / "cache")
    shutil.copytree(paths[0].parent, tmp_path / "copy")
    load_images([tmp_path / "copy" / path.name for path in paths], 16, tmp_path / "cache")
    assert sorted(decoded) == sorted(path.name for path in paths)


def test_load_images_other_size_or_order_is_another_array(paths, tmp_path, decoded):
    load_images(paths, 16, tmp_path / "cache")
    assert load_images(paths, 8, tmp_path / "cache").shape[1] == 8
    backwards = load_images(paths[::-1], 16, tmp_path / "cache")
    assert np.array_equal(backwards[::-1], load_images(paths, 16, tmp_path / "cache"))
    assert len(decoded) == 12


def test_load_images_names_every_undecodable_file_at_once_and_keeps_nothing(paths, tmp_path):
    good = paths[1].read_bytes()
    for index in (1, 3):
        paths[index].write_bytes(paths[index].read_bytes()[:200])
    with pytest.raises(DataError) as caught:
        load_images(paths, 16, tmp_path / "cache")
    assert "1.png" in str(caught.value) and "3.png" in str(caught.value) and "0.png" not in str(caught.value)
    assert not list((tmp_path / "cache").glob("*/images.npy"))
    paths[1].write_bytes(good)
    with pytest.raises(DataError) as caught:
        load_images(paths, 16, tmp_path / "cache")
    assert "1.png" not in str(caught.value)


def test_load_images_names_every_missing_file_at_once(paths, tmp_path):
    paths[0].unlink()
    paths[2].unlink()
    with pytest.raises(DataError) as caught:
        load_images(paths, 16, tmp_path / "cache")
    assert "0.png" in str(caught.value) and "2.png" in str(caught.value)


def test_load_images_file_changed_between_hashing_and_decoding_is_refused(paths, tmp_path, monkeypatch):
    digests = image_cache._digests

    def hash_then_change(*arguments):
        found = digests(*arguments)
        save_noise(paths[0], np.random.default_rng(5))
        return found

    monkeypatch.setattr(image_cache, "_digests", hash_then_change)
    with pytest.raises(DataError, match=r"0\.png: was changed while"):
        load_images(paths, 16, tmp_path / "cache")


def test_load_images_many_processes_at_once_agree(paths, tmp_path):
    code = """
import sys
from msad.data_io.cache import load_images
print(int(load_images(sys.argv[2:], 32, sys.argv[1]).sum()))
"""
    processes = [python(code, tmp_path / "cache", *paths) for _ in range(5)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert {output for output, _ in outputs} == {f"{load_images(paths, 32, tmp_path / 'cache').sum()}\n"}, outputs
    assert len(list((tmp_path / "cache").glob("*/images.npy"))) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files by Linux's signal")
def test_load_images_killed_while_writing_leaves_nothing_that_is_used(paths, tmp_path):
    # Beyond the limit on a file's size the kernel kills the process in the middle of a write.
    code = """
import resource, signal, sys
from msad.data_io.cache import load_images
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
load_images(sys.argv[2:], 64, sys.argv[1])
"""
    process = python(code, tmp_path / "cache", *paths)
    process.communicate(timeout=60)
    assert process.returncode < 0
    images = load_images(paths, 64, tmp_path / "cache")
    assert np.array_equal(images[3], resize(decode(paths[3]), 64))


def test_digests_are_those_of_the_contents_in_the_order_of_the_paths(paths, tmp_path):
    first = digests(paths, tmp_path / "cache")
    assert first == [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths] and len(set(first)) == 4
    shutil.copytree(paths[0].parent, tmp_path / "copy")
    assert digests([tmp_path / "copy" / path.name for path in paths], tmp_path / "cache") == first
    assert digests(paths[::-1], tmp_path / "cache") == first[::-1]


def test_load_images_nothing_asked_for_is_refused(tmp_path):
    with pytest.raises(DataError, match="0 images"):
        load_images([], 16, tmp_path)


def test_load_images_real_bottles_warm_start_is_far_faster(real_root, tmp_path):
    paths = sorted((real_root / "bottle" / "train" / "good").iterdir())[:30]
    times = []
    for _ in range(2):
        start = time.perf_counter()
        load_images(paths, 128, tmp_path)
        times.append(time.perf_counter() - start)
    assert times[1] < times[0] / 10
