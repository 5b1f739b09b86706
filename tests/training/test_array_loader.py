from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from msad.training import array_loader
from msad.training.array_loader import ArrayLoader, shared

INDICES = list(torch.randperm(50, generator=torch.Generator().manual_seed(0)).split(8))


@pytest.fixture
def mapped(tmp_path):
    np.save(tmp_path / "array.npy", np.random.default_rng(0).integers(0, 256, (50, 6, 5, 3), dtype=np.uint8))
    return np.load(tmp_path / "array.npy", mmap_mode="r")


def test_stream_on_a_cpu_reads_rows_from_the_map_and_keeps_no_copy(mapped):
    kept = ArrayLoader(mapped, torch.device("cpu"))
    assert len(kept) == 50 and kept._kept is None
    for index_B, rows_BHWC in zip(INDICES, kept.stream(INDICES), strict=True):
        assert np.array_equal(rows_BHWC.numpy(), mapped[index_B.numpy()])
        assert torch.equal(rows_BHWC, kept[index_B])


@pytest.mark.gpu
@pytest.mark.parametrize("most_bytes", [0, 1 << 30])
def test_stream_to_a_gpu_gives_the_same_rows_whether_they_fit_or_not(mapped, most_bytes, monkeypatch):
    monkeypatch.setattr(array_loader, "MOST_BYTES", most_bytes)
    kept = ArrayLoader(mapped, torch.device("cuda"))
    assert (kept._kept is None) == (most_bytes == 0)
    for count in (0, 1, 2, len(INDICES)):
        streamed = [rows_BHWC.clone() for rows_BHWC in kept.stream(INDICES[:count])]
        assert len(streamed) == count
        for index_B, rows_BHWC in zip(INDICES, streamed, strict=False):
            assert rows_BHWC.is_cuda and np.array_equal(rows_BHWC.cpu().numpy(), mapped[index_B.numpy()])


def test_shared_array_is_read_from_its_file_without_a_copy_or_a_warning(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(6).reshape(2, 3))
    array = np.load(tmp_path / "a.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = shared(array)
    assert tensor.data_ptr() == array.ctypes.data and tensor.tolist() == [[0, 1, 2], [3, 4, 5]]
