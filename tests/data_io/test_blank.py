from __future__ import annotations

import pytest

from msad.data_io import blank
from msad.data_io.blank import marked
from msad.data_io.errors import DataError
from tests.data_io import trees


def test_marked_opens_each_mask_once_and_again_when_it_changes(tmp_path, monkeypatch):
    tree = trees.Tree(tmp_path, "")
    for index in range(3):
        tree.mask(f"{index}.png", value=index)
    masks = [tmp_path / f"{index}.png" for index in range(3)]
    assert marked(masks, tmp_path / "cache") == [False, True, True]
    with monkeypatch.context() as patch:
        patch.setattr(blank, "decode_mask", lambda *_, **__: pytest.fail("opened again"))
        assert marked(masks, tmp_path / "cache") == [False, True, True]
    tree.mask("0.png", value=9)
    assert marked(masks, tmp_path / "cache") == [True, True, True]


def test_marked_names_every_unreadable_mask_at_once(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=r"a\.png: cannot be decoded[\s\S]*b\.png: cannot be decoded"):
        marked([tmp_path / "a.png", tmp_path / "b.png"], tmp_path / "cache")
