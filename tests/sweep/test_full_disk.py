"""A disk that is really full: what was there stays whole, the error says so, and with space again the work goes on."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from msad.bundle.bundles import Bundle
from msad.errors import MsadError, ResourceError
from msad.workspace import JobDirectory, write_atomically


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mount.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path) -> Path:
    """Take all the space that is left."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return filler


def test_job_file_on_a_full_disk_stays_as_it_was(disk):
    directory = JobDirectory(disk / "job")
    directory.write("result", {"epoch": 1})
    filler = fill(disk)
    with pytest.raises(ResourceError, match="No space left on device; what was there before is unharmed"):
        directory.write("result", {"epoch": 2, "long": "x" * 100_000})
    assert directory.read("result") == {"epoch": 1}
    filler.unlink()
    directory.write("result", {"epoch": 2})
    assert directory.read("result") == {"epoch": 2}


def test_checkpoint_on_a_full_disk_leaves_the_one_before(disk, tmp_path):
    checkpoint = disk / "checkpoint.pt"
    torch.save({"epoch": 1}, tmp_path / "state.pt")
    write_atomically(checkpoint, (tmp_path / "state.pt").read_bytes())
    filler = fill(disk)
    with pytest.raises(ResourceError, match="cannot be written"):
        write_atomically(checkpoint, bytes(1 << 20))
    assert torch.load(checkpoint, weights_only=True) == {"epoch": 1}
    filler.unlink()
    write_atomically(checkpoint, bytes(1 << 20))
    assert [path.name for path in disk.iterdir()] == ["checkpoint.pt"]


def test_bundle_on_a_full_disk_leaves_the_one_before_whole(disk, bundle):
    bundle.save(disk / "bundle")
    filler = fill(disk)
    with pytest.raises(MsadError, match="No space left on device"):
        bundle.save(disk / "bundle")
    assert Bundle.load(disk / "bundle").threshold == bundle.threshold
    filler.unlink()
    bundle.save(disk / "bundle")
    assert sorted(path.name for path in disk.iterdir()) == ["bundle"]
