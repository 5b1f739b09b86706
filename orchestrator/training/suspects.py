"""Suspects among the good: training images that a memory of the others finds unusual, ranked.

A defect among the good images teaches that it is normal, and a memory that holds it says nothing of it. So each image
is scored by the memory as it would be without it (cross-fitting): of every fold the places that it brought are left
out. Its maps are calibrated likewise, each by the others.

Tensors are named by shape: B images of a batch, N images, H×W pixels of an image, h×w of a map that is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from msad.data_io.bit_depth import find_bit_depth
from msad.data_io.cache import load_images
from msad.data_io.errors import DataError
from msad.data_io.layout import AUTO, choose_categories, find_layout
from msad.data_io.layouts.faults import FEWEST_GOOD_IMAGES
from msad.data_io.roi import load_roi
from msad.data_io.shape import find_ratio, fitted_size, square_side
from msad.models.outliers import deviations, stand_out
from msad.models.registry import build
from msad.models.roi import Roi
from msad.models.scorer import Scoring
from msad.models.thresholds import LeaveOneOut
from msad.training.batches import batches

FOLDS = 5
PICTURED = 24
"""Images, the most unusual first, whose pixels and maps are returned."""

_KEPT = 4  # pixels of an image to one of a map that is kept: the memory's own places are larger
_AT_ONCE = 16


@dataclass(frozen=True)
class Suspects:
    """Good images of one category, the most unusual first.

    Parameters
    ----------
    category
        Their category.
    paths
        The files.
    deviations
        float64 N: how far above the usual each score is, see `msad.models.outliers.deviations`.
    stands_out
        bool N: whether that is farther than good images are.
    images, maps
        Of the first `PICTURED`: uint8 H×W×3 each, as the network saw them; float32 h×w, in deviations from the usual,
        higher where more unusual.
    """

    category: str
    paths: tuple[Path, ...]
    deviations: np.ndarray
    stands_out: np.ndarray
    images: np.ndarray
    maps: np.ndarray


@torch.no_grad()
def find_suspects(
    root: Path | str,
    category: str,
    *,
    layout: str = AUTO,
    image_size: int | str = 256,
    bit_depth: int | None = None,
    cache: Path | str | None = None,
    device: torch.device | str = "cpu",
) -> Suspects:
    """Rank the good training images of a category by how unusual the others find them; opens no test file.

    Parameters
    ----------
    root, category, layout
        See `msad.data_io.splits.split_good_images`; all images to learn from, those held out for validation included.
    image_size, bit_depth
        As of a search: a budget of pixels, or height and width; bits of image files of more than 8, None finds them.
    cache
        Of decoded images; None for the default.
    device
        Where the network works.

    Raises
    ------
    msad.data_io.errors.DataError
        No such root or category, too few images, or images that cannot be read.
    """
    root = Path(root)
    (category,) = choose_categories(root, [category], layout)
    paths = find_layout(root, layout).train(root, category)
    if len(paths) < FEWEST_GOOD_IMAGES:
        raise DataError(f"{root}: {category} has {len(paths)} good images; at least {FEWEST_GOOD_IMAGES} are needed")
    size = fitted_size(image_size, find_ratio(paths))
    image_NHWC = load_images(paths, size, cache, bit_depth or find_bit_depth(paths))
    roi_HW = load_roi(root, category, size, paths[0], layout)
    score_N, map_Nhw = _cross_fitted(image_NHWC, roi_HW, torch.device(device))
    order_N = np.argsort(-score_N, kind="stable")
    pictured_P = order_N[:PICTURED]
    return Suspects(
        category=category,
        paths=tuple(paths[index] for index in order_N),
        deviations=deviations(score_N)[order_N],
        stands_out=stand_out(score_N)[order_N],
        images=image_NHWC[pictured_P],
        maps=map_Nhw[pictured_P],
    )


def _cross_fitted(
    image_NHWC: np.ndarray, roi_HW: np.ndarray | None, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Return the score and the map of each image by what is remembered of others."""
    count, size = len(image_NHWC), image_NHWC.shape[1:3]
    model = build("feature_memory").to(device, memory_format=torch.channels_last).eval()
    roi = None if roi_HW is None else Roi(torch.from_numpy(np.array(roi_HW))[None].to(device))
    model.roi = roi
    model.meet(image_NHWC)
    encoded, inside = (model.encode(batch) for batch in batches(image_NHWC, device, _AT_ONCE)), None
    if roi is not None:
        places = [side // model.backbone.strides[0] for side in size]
        inside_1hw = F.adaptive_avg_pool2d(roi.inside_1HW.float(), places)
        counts = (min(_AT_ONCE, count - first) for first in range(0, count, _AT_ONCE))
        inside = (inside_1hw.expand(number, 1, -1, -1) for number in counts)
    model.adapt_inside(encoded, inside)
    kept_N1hw = torch.empty(count, 1, *(side // _KEPT for side in size))
    for left_out_N in (np.arange(fold, count, FOLDS) for fold in range(min(FOLDS, count))):
        other, done = model.without(left_out_N, count).eval(), 0
        for image_BCHW in batches(image_NHWC, device, _AT_ONCE, left_out_N):
            map_B1HW = other.anomaly_maps(image_BCHW)["memory"]
            of_batch = left_out_N[done : done + len(map_B1HW)]
            kept_N1hw[of_batch] = F.avg_pool2d(map_B1HW, _KEPT).cpu()
            done += len(of_batch)
    fixed = model.fixed_scoring
    scoring = Scoring(**{**fixed, "smoothing": fixed["smoothing"] * square_side(size) / 256 / _KEPT})
    if roi is not None:
        share_1hw = F.adaptive_avg_pool2d(roi.inside_1HW.float(), kept_N1hw.shape[-2:])
        roi = Roi((share_1hw >= share_1hw.max() / 2).cpu())
    maps, score_N = LeaveOneOut(scoring, {"memory": kept_N1hw}, roi).good()
    return score_N, np.stack(maps)
