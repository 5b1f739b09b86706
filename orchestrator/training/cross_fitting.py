"""What a trained model is delivered with: statistics and thresholds, from more good images than those held out.

A memory can be made again without some of its images in seconds, so the images it learned from become held-out ones
as well (cross-fitting, as in cross-conformal prediction: Vovk, Annals of Mathematics and Artificial Intelligence 74,
2015): what is usual at a position, and the thresholds, rest on hundreds of good images instead of tens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

from msad.models.base import AnomalyModel
from msad.models.roi import Roi
from msad.models.scorer import Scorer, Scoring, fit_scorer, reduce
from msad.models.smoothing import smooth
from msad.models.thresholds import LeaveOneOut
from msad.training.batches import FeatureBatches, PlainBatches, batches
from msad.training.job_config import JobConfig
from msad.training.training_data import TrainingData
from msad.training.validation import Thresholds, anomaly_maps, set_thresholds

FOLDS = 4
"""Parts of the training images, each of which is left out once."""

UNUSUAL = 0.05
"""Share of the held-out images that do not say what is usual, where there are hundreds."""

_CROSS_FITTED = 1 << 24  # pixels of training images that are scored so: 256 images of 256 pixels
_TINY = 1e-6


def fit_delivered(
    job: JobConfig,
    model: AnomalyModel,
    looked_at: PlainBatches | FeatureBatches,
    data: TrainingData,
    scoring: Scoring,
    without: Callable[[np.ndarray], AnomalyModel | None] | None = None,
) -> tuple[Scorer, Thresholds, list[int]]:
    """Return the scorer and the thresholds of a model, and the positions of the training images that they rest on too.

    None of these if the model cannot tell what it would be without some. `without(left_out_N)` makes such a model, of
    one that has looked at other images too; None: of these alone.
    """
    validation = anomaly_maps(model.eval(), looked_at.validation())
    held_out, also_scored = with_training_images(job, model, data, validation, scoring, looked_at.roi, without)
    changed = anomaly_maps(model, looked_at.changed())
    scorer, seen = fit_to_usual(scoring, held_out, changed, looked_at.roi, all_usual=not also_scored)
    return scorer, set_thresholds(model, looked_at, data, scorer, job, seen), also_scored


def fit_to_usual(
    scoring: Scoring,
    held_out: Mapping[str, Tensor],
    changed: Mapping[str, Tensor],
    roi: Roi | None = None,
    *,
    all_usual: bool = False,
) -> tuple[Scorer, LeaveOneOut]:
    """Fit a scorer on the `usual_images`, or all, of those held out, and on the first of them as they were changed.

    Return with it what scores images without what they are made of.
    """
    count, changes = (len(next(iter(maps.values()))) for maps in (held_out, changed))
    usual_G = torch.ones(count + changes, dtype=torch.bool)
    if not all_usual:
        usual_G[:count] = usual_images(scoring, held_out, roi)
    seen = {name: torch.cat([held_out[name], changed[name]]) for name in scoring.map_names}
    scorer = fit_scorer(scoring, {name: maps[usual_G] for name, maps in seen.items()}, roi)
    return scorer, LeaveOneOut(scoring, seen, roi, usual_G, changes)


def usual_images(scoring: Scoring, held_out: Mapping[str, Tensor], roi: Roi | None = None) -> Tensor:
    """Return which images say what is usual, bool G: all but the twentieth whose scores are the highest.

    Some of a hundred good images look unlike all others, or are none: where they differ, the deviation from what is
    usual would be large, and hide defects. A threshold counts them all the same.
    """
    score_G = torch.from_numpy(LeaveOneOut(scoring, held_out, roi).good_scores())
    usual_G = torch.ones(len(score_G), dtype=torch.bool)
    usual_G[score_G.argsort(descending=True)[: int(len(score_G) * UNUSUAL)]] = False
    return usual_G


@torch.no_grad()
def with_training_images(
    job: JobConfig,
    model: AnomalyModel,
    data: TrainingData,
    validation_maps: Mapping[str, Tensor],
    scoring: Scoring,
    roi: Roi | None = None,
    without: Callable[[np.ndarray], AnomalyModel | None] | None = None,
) -> tuple[dict[str, Tensor], list[int]]:
    """Return the maps of validation images, and behind them of training images by the model as without them and others.

    Also the positions of these; none if the model cannot tell. What takes steps cannot be made again in seconds: its
    maps are brought to where they would be, see `_as_held_out`.
    """
    count, device = len(data.train_NHWC), next(iter(validation_maps.values())).device
    without = without or partial(model.without, count=count)
    most = max(FOLDS, _CROSS_FITTED // math.prod(job.sides))
    scored_N = np.unique(np.linspace(0, count - 1, most).round().astype(int))
    parts, also_scored = [], []
    for fold in range(FOLDS):
        left_out_N = np.arange(fold, count, FOLDS)
        chosen_N = np.intersect1d(scored_N, left_out_N)
        if len(chosen_N) and len(left_out_N) < count and (other := without(left_out_N)) is not None:
            parts.append(anomaly_maps(other.eval(), batches(data.train_NHWC, device, job.batch_size, chosen_N)))
            also_scored += chosen_N.tolist()
    if not parts:
        return dict(validation_maps), []
    maps = {name: torch.cat([part[name] for part in parts]) for name in validation_maps}
    for name in set(model.stepped_maps) & set(scoring.map_names):
        maps[name] = _as_held_out(maps[name], validation_maps[name], scoring, roi)
    return {name: torch.cat([validation_maps[name], maps[name]]) for name in maps}, also_scored


def _as_held_out(maps_N1HW: Tensor, validation_G1HW: Tensor, scoring: Scoring, roi: Roi | None) -> Tensor:
    """Scale and shift maps of images that were trained on, so that their scores have the validation images' moments.

    A network restores and marks what it was trained on a little better. How good images differ among themselves, which
    is what a threshold among few of them lacks, is told by the training images all the same.
    """
    scores_N, scores_G = (
        reduce(smooth(maps, scoring.smoothing, roi), scoring.reduction, roi) for maps in (maps_N1HW, validation_G1HW)
    )
    scale = scores_G.std(correction=0) / scores_N.std(correction=0).clamp_min(_TINY)
    return (maps_N1HW - scores_N.mean()) * scale + scores_G.mean()
