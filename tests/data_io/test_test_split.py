from __future__ import annotations

import ast
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msad.data_io.check import check
from msad.data_io.decode import decode, resize
from msad.data_io.errors import DataError
from msad.data_io.test_split import TestSplit
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


def test_test_split_without_a_mask_is_not_masked_there(root):
    (root / "part" / "ground_truth" / "crack" / "1_mask.png").unlink()
    split = TestSplit(root, "part")
    assert split.masked.tolist() == [True, True, True, False] and not split.masks(16)[3].any()
    shutil.rmtree(root / "part" / "ground_truth")
    split = TestSplit(root, "part")
    assert not split.masked.any() and split.remarks(16) == ["no masks: pixels are not measured"]


def test_test_split_masks_of_zeros_and_ones_are_read_as_such_and_said_once(root):
    for index in range(2):
        path = root / "part" / "ground_truth" / "crack" / f"{index}_mask.png"
        Image.fromarray((np.asarray(Image.open(path)) > 0).astype(np.uint8)).save(path)
    split = TestSplit(root, "part")
    assert all(mask.sum() == 24 for mask in [*split.masks()][2:])
    assert split.remarks(16) == ["2 mask(s) hold 0 and 1 alone: 1 is read as defective"]
    (problem,) = check(root).problems
    assert problem.severity == "warning" and "1 is read as defective" in problem.message


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
        if "msad.data_io.test_split" in imported_modules(path)
    }
    assert importers <= {"orchestrator/bundle/evaluation.py"}


def test_data_io_imports_neither_models_nor_orchestration():
    for path in (REPOSITORY / "data_io").rglob("*.py"):
        names = imported_modules(path)
        assert not {name.split(".")[0] for name in names} & {"ray", "mlflow", "torch"}, path
        assert all(name.startswith("msad.data_io") for name in names if name.split(".")[0] == "msad"), path
