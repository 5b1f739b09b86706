"""A demo dataset in the MVTec AD layout that is made on the spot, for a first run without any download.

Three textures are cut from real photographs (brick, grass, gravel; grey, from scikit-image, CC0) and two objects (gear,
tablets; colour) are drawn with natural variation of pose, lighting and grain. It shows the way of the work and serves
tests; a score on it says nothing about a factory.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from msad.data_io.demo_defects import Defect, hole, scratch, stain
from msad.data_io.demo_objects import Pose, draw_gear, draw_tablets, random_pose
from msad.data_io.errors import DataError
from msad.data_io.layout import GOOD
from msad.data_io.parallel import map_in_threads
from msad.data_io.photographs import cut_texture, load_photograph

Draw = Callable[[Pose, int, float], tuple[np.ndarray, np.ndarray]]

TEXTURES = ("brick", "grass", "gravel")
OBJECTS: dict[str, tuple[Draw, str]] = {
    "gear": (draw_gear, "missing_tooth"),
    "tablets": (draw_tablets, "broken_tablet"),
}
CATEGORIES = (*TEXTURES, *OBJECTS)
_SURFACE_DEFECTS: dict[str, Defect] = {"scratch": scratch, "stain": stain, "hole": hole}
_MARKER = ".msad-demo.json"
_VERSION = 1


def make_demo(
    directory: Path | str, seed: int = 0, image_size: int = 160, train: int = 40, good: int = 12, per_defect: int = 6
) -> Path:
    """Make the demo dataset: categories brick, grass, gravel, gear and tablets, with three or four defect types each.

    The same arguments give the same bytes (with the same versions of numpy, Pillow and scikit-image). The defects of a
    type go from faint (000.png) to plain (the last). A directory that holds this very dataset already is left as it is;
    one that holds another demo dataset is made anew.

    Parameters
    ----------
    directory : where to; created when it is not there.
    seed : any non-negative integer.
    image_size : side of the images in pixels, at least 32.
    train, good : good images per category in train/good and in test/good, at least 1 of each.
    per_defect : images per defect type, at least 1.

    Returns
    -------
    The directory: a dataset root.

    Raises
    ------
    DataError : the directory holds something else, or a number is out of range.
    """
    directory = Path(directory)
    if image_size < 32 or min(train, good, per_defect) < 1 or seed < 0:
        raise DataError(
            f"a demo of {image_size} pixels with {train} train, {good} good and {per_defect} defective images per type "
            f"and seed {seed} cannot be made; at least 32 pixels, one image of each and seed 0 are needed"
        )
    settings = {"version": _VERSION, "seed": seed, "image_size": image_size, "train": train, "good": good}
    settings["per_defect"] = per_defect
    marker = directory / _MARKER
    if marker.exists():
        if json.loads(marker.read_text()) == settings:
            return directory
        for category in CATEGORIES:
            shutil.rmtree(directory / category, ignore_errors=True)
    elif directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise DataError(f"{directory}: holds something that is no demo dataset; give a new or an empty folder")
    directory.mkdir(parents=True, exist_ok=True)
    marker.write_text("{}")  # ours already, but not finished: an interrupted run is made anew
    photographs = {name: load_photograph(f"{name}.png") for name in TEXTURES}
    plan = [
        (category, kind, index)
        for category in CATEGORIES
        for kind, count in [("train", train), (GOOD, good), *((name, per_defect) for name in defect_types(category))]
        for index in range(count)
    ]

    def make(item: tuple[str, str, int]) -> None:
        category, kind, index = item
        rng = np.random.default_rng([seed, *(zlib.crc32(word.encode()) for word in (category, kind)), index])
        severity = None if kind in ("train", GOOD) else index / max(1, per_defect - 1)
        picture, mask = _picture(category, kind, severity, image_size, photographs.get(category), rng)
        folder = directory / category
        parts = ("train", GOOD) if kind == "train" else ("test", kind)
        _save(picture, folder.joinpath(*parts, f"{index:03d}.png"), grey=category in TEXTURES)
        if severity is not None:
            _save(mask.astype(np.float32), folder / "ground_truth" / kind / f"{index:03d}_mask.png")

    for _ in map_in_threads(make, plan):
        pass
    marker.write_text(json.dumps(settings))
    return directory


def defect_types(category: str) -> tuple[str, ...]:
    """The defect types of a demo category."""
    return (*_SURFACE_DEFECTS, OBJECTS[category][1]) if category in OBJECTS else tuple(_SURFACE_DEFECTS)


def _picture(
    category: str, kind: str, severity: float | None, size: int, photograph: np.ndarray | None, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One picture float S×S×3 and the mask S×S of its defect; severity None for a good one."""
    if photograph is not None:
        picture = np.clip(
            cut_texture(photograph, size, rng) * _lamp(size, rng) + rng.normal(0, 0.01, (size, size, 1)), 0, 1
        )
        body = np.ones((size, size), np.float32)
    else:
        draw, missing = OBJECTS[category]
        pose = random_pose(rng)
        picture, body = draw(pose, size, 0.0)
        if kind == missing and severity is not None:
            broken, _ = draw(pose, size, 0.3 + 0.7 * severity)
            # The same pose and grain: whatever differs by a grey level is the missing part.
            mask = np.abs(broken - picture).max(axis=2) > 1 / 255
            return np.where(mask[..., None], broken, picture), mask
    if severity is None:
        return picture, np.zeros((size, size), bool)
    return _SURFACE_DEFECTS[kind](picture, body, rng, severity)


def _lamp(size: int, rng: np.random.Generator) -> np.ndarray:
    line = np.linspace(-1, 1, size)
    slope_x, slope_y = rng.normal(0, 0.05, 2)
    return (rng.uniform(0.9, 1.1) + slope_x * line[None, :] + slope_y * line[:, None])[..., None]


def _save(picture: np.ndarray, path: Path, grey: bool = False) -> None:
    levels = np.round(picture * 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels[..., 0] if grey else levels).save(path)
