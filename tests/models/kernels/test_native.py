from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from msad.models.kernels import native


def test_libraries_are_compiled_once(compiled, monkeypatch):
    made = {path: path.stat().st_mtime_ns for path in compiled.glob("*/*")}
    assert len(made) == len(native._LIBRARIES)
    monkeypatch.setattr(native, "_loaded", {})
    assert native.prepare(compiled) is None
    assert made == {path: path.stat().st_mtime_ns for path in compiled.glob("*/*")}


@pytest.mark.parametrize(("compiler", "said"), [("no-such-cc", "no-such-cc is not there"), ("false -x", "false -x")])
def test_prepare_without_a_working_compiler_says_why(compiler, said, tmp_path, monkeypatch):
    monkeypatch.setattr(native, "_loaded", {})
    monkeypatch.setenv("CC", compiler)
    assert said in native.prepare(tmp_path)
    assert not native._loaded
    assert not list(tmp_path.glob("*/*"))


def test_prepare_in_a_folder_that_cannot_be_made_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "_loaded", {})
    (tmp_path / "file").touch()
    assert "file" in native.prepare(tmp_path / "file" / "kernels")
    assert not native._loaded


def test_libraries_that_others_may_have_written_are_not_loaded(compiled, monkeypatch):
    (folder,) = compiled.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(native, "_loaded", {})
    folder.chmod(0o770)
    assert "others may write there" in native.prepare(compiled)
    assert not native._loaded
    folder.chmod(0o700)
    other = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: other)
    planted = folder.rename(compiled / f"kernels-{other}")  # as if another user had made it for this one
    assert "others may write there" in native.prepare(compiled)
    planted.rename(folder)
    (compiled / f"kernels-{other}").symlink_to(folder)
    assert "others may write there" in native.prepare(compiled)
    assert not native._loaded
    (compiled / f"kernels-{other}").unlink()


def test_libraries_share_the_threads_of_torch(compiled):
    if not Path("/proc/self/maps").exists():
        pytest.skip("needs /proc")
    code = (
        "import sys, pathlib, torch; from msad.models.kernels import native; "
        "native.prepare(pathlib.Path(sys.argv[1])); "
        "print(len({line.split()[-1] for line in open('/proc/self/maps') if 'libgomp' in line}))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(compiled)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1", "two pools of threads would wait for each other's processors"


def test_call_takes_tensors_and_numbers(compiled):
    weight, bias, part = torch.ones(1), torch.zeros(1), torch.empty(2)
    made, (mean, variance, scale) = torch.empty(4), torch.empty(3, 1)
    feature = torch.tensor([1.0, 2.0, 3.0, 4.0])
    filled = made, mean, variance, scale
    native.call("norm_relu", torch.float32, "forward", feature, weight, bias, *filled, part, 4, 1, 0.0, 1)
    torch.testing.assert_close(made, torch.relu((feature - 2.5) / feature.std(correction=0)))
    torch.testing.assert_close(variance[0], feature.var())
