"""Ground truth that is no plain mask: a mask in colours, or outlines in a list of annotations.

Legend of shapes: H, W an image's own height and width.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from msad.data_io.cache import digests
from msad.data_io.decode import decode
from msad.data_io.errors import DataError

Polygon = tuple[float, ...]
"""x, y, x, y, ... in pixels."""


class Marking(ABC):
    """How the file at a sample's `mask_path` says where the image is defective."""

    @abstractmethod
    def read(self, path: Path, height_width: tuple[int, int]) -> np.ndarray:
        """Where an image of this size is defective, bool H×W; a mask in a file of its own has the file's size.

        Raises
        ------
        DataError : the file cannot be read, or it says something that fits no image of this size.
        """

    def digest(self, path: Path, directory: Path | str | None = None) -> str:
        """64 hexadecimal digits that are equal where markings are."""
        return hashlib.sha256(repr(self).encode()).hexdigest()


@dataclass(frozen=True)
class ColourMask(Marking):
    """A mask in which every colour but the background's is a kind of defect.

    Parameters
    ----------
    background : its colour, RGB in 0..255.
    """

    background: tuple[int, int, int]

    def read(self, path: Path, height_width: tuple[int, int]) -> np.ndarray:
        return (decode(path) != np.array(self.background, np.uint8)).any(axis=2)

    def digest(self, path: Path, directory: Path | str | None = None) -> str:
        return hashlib.sha256(f"{self!r} {digests([path], directory)[0]}".encode()).hexdigest()


@dataclass(frozen=True)
class Outlines(Marking):
    """The outlines of an image's defects, of which some may be masks by their runs, as COCO has them.

    Parameters
    ----------
    height, width : of the image, as the annotations say.
    polygons : of each defect's parts.
    runs : of each further mask, the lengths of its runs, by columns, the first of them not defective.
    """

    height: int
    width: int
    polygons: tuple[Polygon, ...] = ()
    runs: tuple[tuple[int, ...], ...] = ()

    def read(self, path: Path, height_width: tuple[int, int]) -> np.ndarray:
        if (self.height, self.width) != height_width:
            found, wanted = (f"{width}×{height}" for height, width in ((self.height, self.width), height_width))
            raise DataError(f"{path}: says that an image is {found} which is {wanted}; mend it")
        drawn = Image.new("1", (self.width, self.height))
        pen = ImageDraw.Draw(drawn)
        for polygon in self.polygons:
            pen.polygon(polygon, fill=1, outline=1)
        marked = np.array(drawn)
        for runs in self.runs:
            if sum(runs) != marked.size or min(runs) < 0:
                raise DataError(
                    f"{path}: a mask's runs have {sum(runs)} pixels in all, its image {marked.size}; mend it"
                )
            defective = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
            marked |= defective.reshape(self.width, self.height).T
        return marked
