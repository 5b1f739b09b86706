from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_io.decode import decode, resize
from data_io.errors import DataError
from data_io.test_split import TestSplit
from tests.data_io.conftest import REPOSITORY


def test_test_split_parts_are_in_one_order(demo, tmp_path):
    split = TestSplit(demo, "gear")
    images, masks = split.images(32, tmp_path), split.masks(32)
    assert len(split) == len(images) == len(masks) == len(split.labels) == len(split.defect_types) == 15
    assert images.shape == (15, 32, 32, 3) and masks.shape == (15, 32, 32) and masks.dtype == bool
    for index, path in enumerate(split.paths):
        assert path.parent.name == split.defect_types[index]
        assert np.array_equal(images[index], resize(decode(path), 32))
    assert split.labels.tolist() == [0] * 3 + [1] * 12
    assert not masks[:3].any() and masks[3:].any(axis=(1, 2)).mean() > 0.8
    assert np.array_equal(split.masks(48)[4:], np.stack(list(split.masks()))[4:])


def test_test_split_native_masks_have_the_sizes_of_their_images(root):
    split = TestSplit(root, "part")
    masks = list(split.masks())
    assert [mask.shape for mask in masks] == [split.native_size(index) for index in range(len(split))]
    assert [int(mask.sum()) for mask in masks] == [0, 0, 24, 24]


def test_test_split_mask_of_another_size_is_named(root):
    path = root / "part" / "ground_truth" / "crack" / "1_mask.png"
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(path)
    with pytest.raises(DataError, match=r"1_mask\.png: is 5×5 but its image 1\.png is 24×21"):
        TestSplit(root, "part").masks(16)


def test_test_split_missing_mask_is_named(root):
    (root / "part" / "ground_truth" / "crack" / "1_mask.png").unlink()
    with pytest.raises(DataError, match=r"1\.png: has no mask; expected ground_truth/crack/1_mask\.png"):
        TestSplit(root, "part").masks(16)


def test_test_split_unknown_category_names_the_nearest(demo):
    with pytest.raises(DataError, match="Did you mean 'gear'"):
        TestSplit(demo, "gears")


def imported_modules(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_test_split_is_imported_by_the_evaluation_only():
    importers = {
        path.relative_to(REPOSITORY).as_posix()
        for package in ("orchestrator", "models", "data_io", "search_spaces")
        for path in (REPOSITORY / package).rglob("*.py")
        if "data_io.test_split" in imported_modules(path)
    }
    assert importers <= {"orchestrator/evaluation.py"}


def test_data_io_imports_neither_models_nor_orchestration():
    for path in (REPOSITORY / "data_io").rglob("*.py"):
        tops = {name.split(".")[0] for name in imported_modules(path)}
        assert not tops & {"models", "orchestrator", "search_spaces", "ray", "mlflow", "torch"}, path
