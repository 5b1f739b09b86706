"""A category's known defects: the few defective images that help to choose.

Legend of shapes: D known defects, in the order of the samples; h×w the size asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from msad.data_io.cache import digests, load_images
from msad.data_io.decode import Size, height_width, read_header, resize_mask
from msad.data_io.files import mask_files
from msad.data_io.layout import AUTO, choose_categories, find_layout
from msad.data_io.layouts.sample import Sample
from msad.data_io.masks import read_truth
from msad.data_io.wide import FULL


@dataclass(frozen=True)
class KnownDefectFiles:
    """Files of known defects, none of which is opened until it is asked for.

    Parameters
    ----------
    samples : each one's path, type of defect, and mask if there is one.
    mask_threshold : see `msad.data_io.layouts.base.Layout`.
    """

    samples: Sequence[Sample]
    mask_threshold: int

    @classmethod
    def find(cls, root: Path | str, category: str, layout: str = AUTO) -> KnownDefectFiles:
        """All known defects of a category; perhaps none.

        Parameters
        ----------
        root, category : the dataset and the category in it.
        layout : see `msad.data_io.layout.find_layout`.

        Raises
        ------
        DataError : no such root or category.
        """
        (category,) = choose_categories(root, [category], layout)
        found = find_layout(root, layout)
        return cls(found.known_defects(Path(root), category), found.mask_threshold)

    def divided(self, train_on_defects: bool) -> tuple[KnownDefectFiles, KnownDefectFiles]:
        """Those that help to choose, and those to be trained on: every second one that has a mask, where that is asked.

        So what was trained on never says how good the training was.
        """
        masked = [sample for sample in self.samples if sample.mask_path is not None]
        taught = masked[1::2] if train_on_defects else []
        return (
            KnownDefectFiles([sample for sample in self.samples if sample not in taught], self.mask_threshold),
            KnownDefectFiles(taught, self.mask_threshold),
        )

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def paths(self) -> list[Path]:
        """The image files."""
        return [sample.path for sample in self.samples]

    @property
    def defect_types(self) -> tuple[str, ...]:
        """Each one's type of defect."""
        return tuple(sample.defect_type for sample in self.samples)

    def digests(self, cache_dir: Path | str | None = None) -> list[str]:
        """The sha256 of each image's content."""
        return digests(self.paths, cache_dir)

    def mask_digests(self, cache_dir: Path | str | None = None) -> list[str]:
        """The sha256 of each mask's content, of several files joined by `+`; `-` where there is no mask."""
        plain = [sample.mask_path if sample.marking is None else None for sample in self.samples]
        files = [mask_files(path) if path else [] for path in plain]
        found = iter(digests([file for of_one in files for file in of_one], cache_dir))
        joined = ["+".join(next(found) for _ in of_one) or "-" for of_one in files]
        return [
            sample.marking.digest(sample.mask_path, cache_dir) if sample.marking is not None else of_files
            for sample, of_files in zip(self.samples, joined, strict=True)
        ]

    def images(self, size: Size, cache_dir: Path | str | None = None, bit_depth: int = FULL) -> np.ndarray:
        """uint8 memory map D×h×w×3, see `msad.data_io.cache.load_images`; there must be at least one."""
        return load_images(self.paths, size, cache_dir, bit_depth)

    def masks(self, size: Size) -> tuple[np.ndarray, np.ndarray]:
        """Where the defects are, bool D×h×w, and of which that is known, bool D.

        Raises
        ------
        DataError : a mask that cannot be decoded or has another size than its image.
        """
        marked = np.zeros((len(self), *height_width(size)), bool)
        for index, sample in enumerate(self.samples):
            if sample.mask_path is not None:
                header = read_header(sample.path)
                sides = header.height, header.width
                whole, _ = read_truth(sample, self.mask_threshold, sides)
                marked[index] = resize_mask(whole, size)
        return marked, np.array([sample.mask_path is not None for sample in self.samples], bool)
