"""The regions of test images: listed, and compared with the ground truth where it is known.

Shapes: H×W pixels of an image as it lies on disk; h×w is the model's image size.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import skimage  # its parts are loaded where they are used first
import torch

from msad.bundle.images import fit_map
from msad.models.regions import FIGURES, find_regions, mask_of

COLUMNS = ("path", "defect_type", "outcome", "region", *FIGURES, "on_defect")


class MeasuredRegions:
    """Gathers the regions above a threshold, image by image.

    Parameters
    ----------
    threshold
        Pixels of a map above it belong to a region.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._rows: list[dict[str, Any]] = []
        self._defects = self._found = 0

    def add(self, index: int, anomaly_map: np.ndarray, size: tuple[int, int], mask: np.ndarray | None) -> None:
        """Add an image.

        Parameters
        ----------
        index
            Its place in the score table.
        anomaly_map
            float32 h×w.
        size
            Its own height and width H, W.
        mask
            bool H×W, True where a defect is; None where that is not known.
        """
        regions = []
        if anomaly_map.max() > self._threshold:  # a map that is brought to another size rises nowhere
            regions = find_regions(fit_map(torch.from_numpy(anomaly_map[None]), size), self._threshold)
        for number, one in enumerate(regions, 1):
            box = (slice(one.y, one.y + one.height), slice(one.x, one.x + one.width))
            share = math.nan if mask is None else float(mask[box][one.mask].mean())
            self._rows.append({"index": index, "region": number, **one.to_dict(), "on_defect": share})
        if mask is not None and mask.any():
            labels, count = skimage.measure.label(mask, connectivity=2, return_num=True)
            self._defects += count
            self._found += len(np.unique(labels[mask_of(regions, size) & mask]))

    def table(self, scores: pd.DataFrame) -> pd.DataFrame:
        """Return a row per region, image by image, the largest first, with the columns `COLUMNS`.

        `on_defect` is the share of its pixels that lie on the ground truth, NaN where there is none. `scores` is
        `Evaluation.scores`.
        """
        rows = pd.DataFrame(self._rows, columns=["index", *COLUMNS[3:]])
        return rows.join(scores[list(COLUMNS[:3])], on="index")[list(COLUMNS)]

    def figures(self, labels: np.ndarray) -> dict[str, float]:
        """Return `false_regions`, the number per good image, and of `defect_regions` how many are `found_regions`.

        A region of the ground truth is found where one of the map touches it. NaN and 0 where there is nothing to
        count. `labels` are 0 of a good image, 1 of a defective one.
        """
        good = int((labels == 0).sum())
        false = int(sum(labels[row["index"]] == 0 for row in self._rows))
        return {
            "false_regions": false / good if good else math.nan,
            "defect_regions": float(self._defects),
            "found_regions": float(self._found),
        }
