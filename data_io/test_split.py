"""The dataset's own test split: the only type through which test images and masks are opened.

A search must never see it. Only the evaluation after selection imports this module, and a test asserts that.

Legend of shapes: N images in the order of the table; H, W an image's own height and width.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from msad.data_io.cache import load_images, load_notes
from msad.data_io.decode import Size, height_width, resize_mask
from msad.data_io.layout import AUTO, choose_categories, find_layout
from msad.data_io.masks import read_truth
from msad.data_io.parallel import map_in_threads
from msad.data_io.remarks import ReadingRemarks
from msad.data_io.table import read_table
from msad.data_io.wide import FULL


class TestSplit:
    """Test images, labels and masks of one category, good images first, sorted by defect type and name.

    Parameters
    ----------
    root, category : the dataset and the category in it.
    layout : see `msad.data_io.layout.find_layout`.

    Attributes
    ----------
    table : one row per image, see `msad.data_io.table.read_table`.
    masked : bool array N: whether an image's ground truth is known, so that its pixels can be measured: it is good, or
        has a mask. All False where no defective image has one: there is nothing to measure then.
    has_masks : whether any is.

    Raises
    ------
    DataError : no such root or category, no test images, or files that are no images.
    """

    __test__ = False  # or pytest takes the class for tests

    def __init__(self, root: Path | str, category: str, layout: str = AUTO) -> None:
        choose_categories(root, [category], layout)
        self.category = category
        self._layout = find_layout(root, layout)
        self._samples = self._layout.test(Path(root), category)
        self.table: pd.DataFrame = read_table(root, [category], splits=("test",), layout=layout)
        defined = self.table["mask_path"].notna().to_numpy()
        self.masked = (defined | (self.labels == 0)) & defined.any()
        self.has_masks = bool(defined.any())
        self._of_ones: set[Path] = set()

    def __len__(self) -> int:
        return len(self.table)

    @property
    def paths(self) -> list[Path]:
        """The image files."""
        return list(self.table["path"])

    @property
    def labels(self) -> np.ndarray:
        """int64 array N: 0 good, 1 defective."""
        return self.table["label"].to_numpy(np.int64)

    @property
    def defect_types(self) -> list[str]:
        """The type of defect of each image, "good" for none."""
        return list(self.table["defect_type"])

    def native_size(self, index: int) -> tuple[int, int]:
        """Height and width in pixels of the image as it lies on disk."""
        row = self.table.iloc[index]
        return int(row["height"]), int(row["width"])

    def images(self, size: Size, cache_dir: Path | str | None = None, bit_depth: int = FULL) -> np.ndarray:
        """uint8 memory map N×h×w×3, see `msad.data_io.cache.load_images`."""
        return load_images(self.paths, size, cache_dir, bit_depth)

    def remarks(self, size: Size, cache_dir: Path | str | None = None, bit_depth: int = FULL) -> list[str]:
        """What is worth saying of the split as it was read with these settings, in sentences.

        That masks are missing or of zeros and ones (of those that were read before) and what is not seen of the images.
        """
        notes = load_notes(self.paths, size, cache_dir, bit_depth)
        seen = ReadingRemarks(bit_depth)
        for path, (largest, clipped, pages) in zip(self.paths, notes.tolist(), strict=True):
            seen.add(path, None if largest < 0 else largest, clipped, pages)
        found = seen.sentences()
        defective = int((self.labels == 1).sum())
        without = defective - int((self.labels[self.masked] == 1).sum())
        if defective and without == defective:
            found.append("no masks: pixels are not measured")
        elif without:
            found.append(f"{without} of {defective} defective images have no mask: pixels are measured on the others")
        if self._of_ones:
            found.append(f"{len(self._of_ones)} mask(s) hold 0 and 1 alone: 1 is read as defective")
        return found

    def masks(self, size: Size | None = None) -> np.ndarray | Iterator[np.ndarray]:
        """Ground-truth masks, True where the defect is; all False for good images, and for those that are not `masked`.

        Parameters
        ----------
        size : what they are resized to, see `msad.data_io.decode.resize_mask`. None for their own sizes.

        Returns
        -------
        bool array N×h×w of that size; or, for None, an iterator over N bool arrays H×W.

        Raises
        ------
        DataError : a mask that cannot be decoded or has another size than its image.
        """
        native = map_in_threads(self._mask, range(len(self)))
        if size is None:
            return native
        masks = np.zeros((len(self), *height_width(size)), bool)
        for index, mask in enumerate(native):
            masks[index] = resize_mask(mask, size)
        return masks

    def _mask(self, index: int) -> np.ndarray:
        whole, of_ones = read_truth(self._samples[index], self._layout.mask_threshold, self.native_size(index))
        self._of_ones.update(of_ones)
        return whole
