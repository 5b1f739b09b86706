"""The photographs that an exported file is checked on, and the good images that give a network of 8 bits its scales.

Shapes: N images of H×W pixels, uint8 N×H×W×3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from msad.bundle.export_form import Form
from msad.bundle.image_files import refuse_missing
from msad.data_io.decode import decode, resize
from msad.data_io.files import IMAGE_SUFFIXES, images_below
from msad.data_io.layout import find_layout
from msad.data_io.photographs import load_photograph
from msad.errors import ConfigError
from msad.training.job_config import JobConfig

CHECKED, CALIBRATING = 8, 64  # images at most
FEWEST_CALIBRATING = 8


def check_batches(paths: Sequence[Path], job: JobConfig, form: Form) -> list[np.ndarray]:
    """Return batches to check a file on: real photographs, several sizes, one and several at once.

    Raises
    ------
    ConfigError
        There is no image among those given, or none of the size that the file is to take.
    """
    if paths:
        return [_repeated(image, form) for image in _read(paths, CHECKED, job.bit_depth, form.photograph)]
    photographs = [load_photograph(name) for name in ("coffee.png", "brick.png", "chelsea.png")]
    if form.photograph:
        fitted = [resize(image, form.photograph) for image in photographs]
        count = form.batch or len(fitted)
        return [np.stack([fitted[(start + more) % len(fitted)] for more in range(count)]) for start in range(3)]
    coffee, brick, cat = photographs
    own_size = np.stack([resize(image, job.sides) for image in photographs])
    part = brick[None, : job.sides[0] // 2 + 3, : job.sides[1] // 2 - 3]
    batches = [own_size, cat[None], np.stack([coffee, coffee[:, ::-1]]), part]
    return [np.resize(batch, (form.batch, *batch.shape[1:])) for batch in batches] if form.batch else batches


def calibration_batches(job: JobConfig, form: Form) -> list[np.ndarray]:
    """Return good images as the file takes them, of the model's own size where it takes any; none for floats.

    Raises
    ------
    ConfigError
        There are fewer than `FEWEST_CALIBRATING`.
    """
    if not form.calibrate_on:
        return []
    good = _read([*_good_images(form.calibrate_on, job.category)], CALIBRATING, job.bit_depth)
    if len(good) < FEWEST_CALIBRATING:
        raise ConfigError(f"{len(good)} good images for the scales of int8; at least {FEWEST_CALIBRATING} are needed")
    return [_repeated(resize(image, form.photograph or job.sides), form) for image in good]


def images_in(paths: Sequence[Path]) -> list[Path]:
    """List image files, and those in folders; that there is none, or no such path, is a ConfigError."""
    refuse_missing(paths)
    found = [file for path in paths for file in (images_below(path) if path.is_dir() else [path])]
    files = [file for file in found if file.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise ConfigError(f"no image ({', '.join(IMAGE_SUFFIXES)}) in {', '.join(map(str, paths))}")
    return files


def _good_images(paths: Sequence[Path], category: str) -> Iterator[Path]:
    """Yield what is given, of a dataset the good training images of the category."""
    for path in paths:
        if (path / category).is_dir():
            yield from find_layout(path).train(path, category)
        else:
            yield path


def _repeated(image: np.ndarray, form: Form) -> np.ndarray:
    return np.repeat(image[None], form.batch or 1, axis=0)


def _read(paths: Sequence[Path], most: int, bit_depth: int, size: tuple[int, int] | None = None) -> list[np.ndarray]:
    """Decode the first images in files and folders; where a size is given, of those that have it."""
    images, files = [], images_in(paths)
    for file in files:
        image = decode(file, bit_depth=bit_depth)
        if size in (None, image.shape[:2]):
            images.append(image)
        if len(images) == most:
            return images
    if not images:
        wanted, there = ("x".join(map(str, sides)) for sides in (size, image.shape[:2]))
        raise ConfigError(
            f"none of the {len(files)} images in {', '.join(map(str, paths))} has {wanted} pixels (height x width), "
            f"the size that the file is to take; {files[-1].name} has {there}"
        )
    return images
