"""Which of a folder's files and folders are masks, by their names alone: nothing that a model should score.

The conventions are those of `msad.data_io.layouts`. What could as well be a photograph is taken for one: a mask has its
image beside it, or lies in a folder beside those of images.
"""

from __future__ import annotations

import os
from collections.abc import Collection

from msad.data_io.layouts.dagm import LABELS
from msad.data_io.layouts.faults import NAMES, ROI

_ENDS = ("_mask", "_GT", "_label")  # of the masks of one's own images; of KolektorSDD2; of KolektorSDD
_TILES = "Imgs"  # Magnetic Tile Defects: NAME.png beside NAME.jpg
_IMAGES = {"images", *NAMES["good"], *NAMES["bad"]}  # VisA's, and those of one's own


def mask_folders(names: Collection[str]) -> set[str]:
    """Return which of the folders in a folder hold masks."""
    beside_images = any(name.lower() in _IMAGES for name in names)
    return {name for name in names if name == "ground_truth" or (beside_images and name.lower() in NAMES["masks"])}


def mask_files(names: Collection[str], folder: str) -> set[str]:
    """Return which of the files in a folder of this name are the masks of others there, or of those above (DAGM)."""
    if LABELS.name in names:
        return {*names} - {LABELS.name}
    stem_of = {name: os.path.splitext(name)[0] for name in names}  # noqa: PTH122 - a Path for each of a million is slow
    stems = {*stem_of.values()}
    masks = {
        name
        for name, stem in stem_of.items()
        if any(stem.endswith(end) and stem.removesuffix(end) in stems for end in _ENDS)
    }
    if folder == _TILES:
        photographs = {stem for name, stem in stem_of.items() if name.lower().endswith(".jpg")}
        masks |= {name for name, stem in stem_of.items() if name.lower().endswith(".png") and stem in photographs}
    return masks | ({ROI} & stem_of.keys())
