"""Real defects on good images: where they come to lie, and that nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from msad.models.defects import KnownDefects
from msad.models.synthesis.appearance import Appearance
from msad.models.synthesis.corruptions import SMALLEST_CHANGE
from msad.models.synthesis.pasted_defects import SHARE, DefectPaster

CPU = torch.device("cpu")


def defect(height=48, width=64, row=10, column=20, side=8, value=255):
    """One image with a bright square on dark ground."""
    images = np.zeros((1, height, width, 3), np.uint8)
    masks = np.zeros((1, height, width), bool)
    masks[0, row : row + side, column : column + side] = True
    images[masks] = value
    return KnownDefects(images, masks, np.ones(1, bool), ("dent",))


def paste(paster, clean, corrupted=None, mask=None, seed=0):
    corrupted = torch.rand(clean.shape) if corrupted is None else corrupted
    mask = torch.ones(len(clean), 1, *clean.shape[2:]) if mask is None else mask
    return paster(clean, corrupted, mask, torch.Generator().manual_seed(seed)), corrupted


def instead_of(found, corrupted):
    return (found != corrupted).flatten(1).any(dim=1)


def test_some_corrupted_images_get_the_defect_instead_and_the_mask_says_where():
    clean = torch.full((64, 3, 48, 64), 0.4)
    (found, mask), corrupted = paste(DefectPaster(defect(), (48, 64), None, CPU), clean)
    instead = instead_of(found, corrupted)
    assert instead.float().mean() == pytest.approx(SHARE, abs=0.2)
    changed = (found - clean).abs().amax(dim=1, keepdim=True) > SMALLEST_CHANGE
    assert torch.equal(changed[instead].float(), mask[instead])
    assert (mask[~instead] == 1).all()
    for one in mask[instead]:  # the square, wherever it lies, perhaps over the border
        assert one.sum() == 64
    assert (found[instead].amax(dim=(1, 2, 3)) == 1).all()


def test_defect_comes_to_lie_anywhere():
    clean = torch.full((64, 3, 48, 64), 0.4)
    (_, mask), _ = paste(DefectPaster(defect(), (48, 64), None, CPU), clean, corrupted=clean)
    assert (mask[:, 0].sum(dim=0) > 0).float().mean() > 0.5


def test_images_that_were_to_stay_clean_stay_clean():
    clean = torch.full((32, 3, 48, 64), 0.4)
    (found, mask), _ = paste(
        DefectPaster(defect(), (48, 64), None, CPU), clean, corrupted=clean, mask=torch.zeros(32, 1, 48, 64)
    )
    assert torch.equal(found, clean) and not mask.any()


def test_same_generator_gives_the_same_batch():
    clean, paster = torch.rand(8, 3, 48, 64), DefectPaster(defect(), (48, 64), None, CPU)
    corrupted = torch.rand(clean.shape)
    (one, _), _ = paste(paster, clean, corrupted, seed=3)
    (other, _), _ = paste(paster, clean, corrupted, seed=3)
    (third, _), _ = paste(paster, clean, corrupted, seed=4)
    assert torch.equal(one, other) and not torch.equal(one, third)


def test_tile_gets_what_is_around_the_defect_of_a_larger_image():
    clean = torch.full((32, 3, 16, 16), 0.4)
    (found, mask), corrupted = paste(DefectPaster(defect(), (16, 16), None, CPU), clean)
    assert (mask[instead_of(found, corrupted)].sum(dim=(1, 2, 3)) == 64).all()


def test_defects_lie_mostly_on_the_product_where_there_is_an_empty_background():
    good = np.full((8, 64, 96, 3), 220, np.uint8)
    good += np.random.default_rng(0).integers(0, 5, good.shape, dtype=np.uint8)
    good[:, 16:48, 10:42] = 60
    clean = torch.from_numpy(good).permute(0, 3, 1, 2).float().div(255).repeat(8, 1, 1, 1)
    small = defect(height=64, width=96, side=4)
    (found, mask), corrupted = paste(DefectPaster(small, (64, 96), Appearance(good), CPU), clean)
    mask = mask[instead_of(found, corrupted)]
    assert mask[:, :, 12:52, 6:46].sum() / mask.sum() > 0.7
