from __future__ import annotations

import errno
import os
import pickle
import shutil
import signal
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from msad.data_io.array_cache import Cleaned, cached_arrays, default_cache_dir, entry, remove_unused
from msad.data_io.errors import DataError
from tests.data_io.conftest import python

BUILD_SLOWLY = """
import os, sys, time
import numpy as np
from msad.data_io.array_cache import cached_arrays
def build():
    with open(sys.argv[2], "a") as log:
        log.write(f"{os.getpid()}\\n")
    time.sleep(0.5)
    return {"a": np.arange(100_000), "b": np.ones((3, 4), np.float32)}
arrays = cached_arrays("key", build, sys.argv[1])
print(int(arrays["a"].sum()), arrays["b"].shape)
"""
HANG_HALF_WRITTEN = """
import sys, time
from msad.data_io.array_cache import entry
def write(folder):
    (folder / "a.npy").write_bytes(b"half of")
    print("writing", flush=True)
    time.sleep(600)
entry("key", write, sys.argv[1])
"""


def once(value):
    calls = []

    def build():
        calls.append(1)
        return {"a": np.full(4, value)}

    return build, calls


def test_cached_arrays_builds_once_and_maps_read_only(tmp_path):
    build, calls = once(7)
    first, second = (cached_arrays("key", build, tmp_path)["a"] for _ in range(2))
    assert len(calls) == 1
    assert isinstance(second, np.memmap) and second.tolist() == first.tolist() == [7] * 4
    with pytest.raises(ValueError, match="read-only"):
        second[0] = 1


def test_cached_arrays_other_key_is_built_apart(tmp_path):
    assert cached_arrays("one/with a slash", once(1)[0], tmp_path)["a"][0] == 1
    assert cached_arrays("two", once(2)[0], tmp_path)["a"][0] == 2


def test_cached_arrays_many_processes_build_once(tmp_path):
    processes = [python(BUILD_SLOWLY, tmp_path / "cache", tmp_path / "log") for _ in range(6)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * 6, outputs
    assert {output for output, _ in outputs} == {f"{sum(range(100_000))} (3, 4)\n"}
    assert len((tmp_path / "log").read_text().split()) == 1


def test_cached_arrays_after_sigkill_of_the_builder_is_built_whole(tmp_path):
    process = python(HANG_HALF_WRITTEN, tmp_path)
    assert process.stdout.readline() == "writing\n"
    assert list(tmp_path.glob("building-*/a.npy"))
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    build, calls = once(5)
    assert cached_arrays("key", build, tmp_path)["a"].tolist() == [5] * 4
    assert calls and not list(tmp_path.glob("building-*"))


def test_cached_arrays_waiter_takes_over_when_the_builder_is_killed(tmp_path):
    builder = python(HANG_HALF_WRITTEN, tmp_path / "cache")
    assert builder.stdout.readline() == "writing\n"
    waiter = python(BUILD_SLOWLY, tmp_path / "cache", tmp_path / "log")
    time.sleep(1)
    assert waiter.poll() is None
    builder.kill()
    builder.communicate(timeout=60)
    output, errors = waiter.communicate(timeout=60)
    assert waiter.returncode == 0, errors
    assert output == f"{sum(range(100_000))} (3, 4)\n"


def test_cached_arrays_removes_leftovers_of_other_keys_but_not_of_living_builders(tmp_path):
    process = python(HANG_HALF_WRITTEN, tmp_path)
    assert process.stdout.readline() == "writing\n"
    cached_arrays("another", once(1)[0], tmp_path)
    assert list(tmp_path.glob("building-*"))
    process.kill()
    process.communicate(timeout=60)
    cached_arrays("a third", once(1)[0], tmp_path)
    assert not list(tmp_path.glob("building-*"))


def test_cached_arrays_failing_build_leaves_nothing_and_can_be_repeated(tmp_path):
    def fail():
        raise DataError("broken.png: damaged")

    with pytest.raises(DataError, match=r"broken\.png"):
        cached_arrays("key", fail, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["locks"]
    assert cached_arrays("key", once(3)[0], tmp_path)["a"][0] == 3


def test_cached_arrays_damaged_entry_is_built_anew(tmp_path):
    del cached_arrays("key", once(1)[0], tmp_path)["a"]
    (path,) = tmp_path.glob("*/a.npy")
    os.truncate(path, 100)
    assert cached_arrays("key", once(2)[0], tmp_path)["a"].tolist() == [2] * 4


def test_cached_arrays_never_pickles(tmp_path):
    with pytest.raises(ValueError, match="allow_pickle"):
        cached_arrays("key", lambda: {"a": np.array([object()])}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["locks"]


def test_cached_arrays_too_small_a_disk_is_told_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "total used free")(10, 10, 5))
    with pytest.raises(DataError, match=rf"{tmp_path}: no space left .* 32 bytes needed .*MSAD_CACHE"):
        cached_arrays("key", once(1)[0], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["locks"]


def test_cached_arrays_disk_that_fills_up_meanwhile_is_told_with_the_bytes(tmp_path, monkeypatch):
    def full(file, *_, **__):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        with pytest.raises(DataError, match=r"no space left .* 32 bytes needed"):
            cached_arrays("key", once(1)[0], tmp_path)
    assert cached_arrays("key", once(9)[0], tmp_path)["a"][0] == 9


def test_entry_disk_full_at_sync_is_told(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=rf"{tmp_path}: no space left"):
        entry("key", lambda folder: np.save(folder / "a.npy", np.ones(3)), tmp_path)


def test_cached_arrays_directory_that_is_a_file_is_told(tmp_path):
    (tmp_path / "cache").write_text("x")
    with pytest.raises(DataError, match="cache cannot be written"):
        cached_arrays("key", once(1)[0], tmp_path / "cache")


def test_default_cache_dir_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MSAD_CACHE", str(tmp_path / "mine"))
    assert default_cache_dir() == tmp_path / "mine"
    monkeypatch.delenv("MSAD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr("sys.platform", "linux")
    assert default_cache_dir() == tmp_path / "xdg" / "msad"


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["objects", "archive", "bare pickle", "huge", "nested"])
def test_cached_arrays_hostile_entry_runs_nothing_and_is_built_anew(tmp_path, kind):
    cached_arrays("key", once(7)[0], tmp_path)
    [file] = tmp_path.glob("*/a.npy")
    evil = np.array([Touch(tmp_path / "touched")], dtype=object)
    header = {"huge": "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}", "nested": "(" * 5000}
    with file.open("wb") as target:
        if kind == "objects":
            np.save(target, evil, allow_pickle=True)
        elif kind == "archive":
            np.savez(target, a=evil)
        elif kind == "bare pickle":
            pickle.dump(evil, target)
        else:
            target.write(b"\x93NUMPY\x01\x00" + len(header[kind]).to_bytes(2, "little") + header[kind].encode())
    assert cached_arrays("key", once(5)[0], tmp_path)["a"].tolist() == [5] * 4
    assert not (tmp_path / "touched").exists()


def test_remove_unused_keeps_what_was_asked_for_lately(tmp_path):
    for key in ("old", "asked for again", "new"):
        cached_arrays(key, once(1)[0], tmp_path)
    (tmp_path / "kernels-0").mkdir()  # not an entry
    for folder in tmp_path.glob("?" * 40):
        os.utime(folder, (0, time.time() - 100))
    cached_arrays("new", once(1)[0], tmp_path)
    build, calls = once(2)
    assert cached_arrays("asked for again", build, tmp_path)["a"].tolist() == [1] * 4 and not calls
    size = 128 + 4 * 8  # of an array with its header
    assert remove_unused(50, tmp_path) == Cleaned(1, size, 2, 2 * size)
    assert cached_arrays("old", build, tmp_path)["a"].tolist() == [2] * 4 and len(calls) == 1
    assert {*tmp_path.glob("*-*")} == {tmp_path / "kernels-0"}


def test_remove_unused_leaves_mapped_arrays_to_those_who_have_them(tmp_path):
    build, calls = once(3)
    mapped = cached_arrays("key", build, tmp_path)["a"]
    assert remove_unused(0, tmp_path).removed == 1
    assert mapped.tolist() == [3] * 4
    assert cached_arrays("key", build, tmp_path)["a"].tolist() == [3] * 4 and len(calls) == 2


def test_remove_unused_leaves_what_is_being_built_and_takes_what_a_killed_builder_left(tmp_path):
    cached_arrays("other", once(1)[0], tmp_path)
    builder = python(HANG_HALF_WRITTEN, tmp_path)
    assert builder.stdout.readline() == "writing\n"
    assert remove_unused(0, tmp_path) == Cleaned(1, 160, 0, 0)
    assert len([*tmp_path.glob("building-*")]) == 1
    cached_arrays("other", once(1)[0], tmp_path)
    builder.kill()
    builder.wait()
    remove_unused(1000, tmp_path)
    assert not [*tmp_path.glob("building-*")]


def test_remove_unused_by_several_at_once_counts_each_entry_once(tmp_path):
    for key in range(60):
        cached_arrays(str(key), once(key)[0], tmp_path)
    with ThreadPoolExecutor(4) as pool:
        cleaned = list(pool.map(lambda _: remove_unused(0, tmp_path), range(4)))
    assert sum(each.removed for each in cleaned) == 60
    assert {path.name for path in tmp_path.iterdir()} == {"locks"}


def test_remove_unused_of_no_cache_is_nothing(tmp_path):
    assert remove_unused(0, tmp_path / "nowhere") == Cleaned()
