"""What jobs will keep in each node's cache, known before they do: a sweep asks every node for that disk space.

Of a frozen encoder's features that is most: for each category and seed at 256 pixels up to 0.1 GB with
`feature_memory`, and 0.6 to 1 GB with the default, `feature_ensemble`, however many images there are.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

import torch

from msad.data_io.array_cache import has_entry
from msad.data_io.decode import height_width
from msad.models.backbones import untrained
from msad.models.base import SelfTraining
from msad.models.registry import architecture, build
from msad.models.synthesis.corruptions import NOISE_FIELDS
from msad.models.synthesis.synthetic_defects import FAMILIES, GRADES, PER_GROUP
from msad.search.sweep_plan import SweepPlan, seeds
from msad.training.batches import features_name, number_of_views
from msad.training.identity import Identity
from msad.training.job_config import JobConfig

CacheNeed = tuple[tuple[str, ...], int]
"""The keys of a cache's entries any of which says that something is there already, and the bytes it takes else."""

_DEVICES = ("cpu", "cuda")
_DEFECTS = len(FAMILIES) * len(GRADES) * PER_GROUP  # images with synthetic defects
_HALF, _FLOAT, _COLOURS = 2, 4, 3


def cache_needs(plan: SweepPlan, categories: Collection[str], final_seeds: int) -> list[CacheNeed]:
    """Return what the jobs of some categories keep, with every seed of their winners.

    A search among what changes the features (the backbone, the corruption, the augmentation) keeps more of them.
    """
    kept: dict[tuple[str, ...], int] = {}
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for study in plan.studies:
        for job in seeds(study.job, final_seeds) if study.categories & set(categories) else ():
            identity = plan.identity(job)
            kept[(identity.key("synthetic"),)] = _images_bytes(identity)
            model = f"{job.architecture} {dict(job.model)} {job.view}"
            if model not in shapes:
                shapes[model] = _encoded_shapes(job)
            if shapes[model]:
                names = (features_name(job, len(identity.train), device) for device in _DEVICES)
                kept[tuple(map(identity.key, names))] = _features_bytes(job, identity, shapes[model])
    return list(kept.items())


def disk_space_problem(kept: Iterable[CacheNeed], cache: Path) -> str | None:
    """Return in words that a cache's disk has too little room for what is not kept there yet, None where it has."""
    needed = sum(size for keys, size in kept if not any(has_entry(key, cache) for key in keys))
    folder = next(path for path in (cache, *cache.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if not needed or free >= needed:
        return None
    return (
        f"{cache}: {_gb(free)} free, but the images and features that trials share there take {_gb(needed)}: make "
        "room (`msad data clean` removes what is long unused), or set MSAD_CACHE to a folder on a larger disk"
    )


def _images_bytes(identity: Identity) -> int:
    """Return what is kept of images: decoded, changed, with synthetic defects and their masks; and the noise."""
    real = len(identity.train) + 2 * len(identity.validation) + len(identity.known)
    pixels = real * _COLOURS + _DEFECTS * (_COLOURS + 1)
    return pixels * math.prod(height_width(identity.image_size)) + NOISE_FIELDS * identity.view_size**2 * _FLOAT


def _features_bytes(job: JobConfig, identity: Identity, shapes: list[tuple[int, ...]]) -> int:
    """Return what `training.batches.FeatureBatches` keeps, where its features of one image have these shapes C×H×W."""
    train = len(identity.train)
    views = train * number_of_views(job, train)
    judged = 0 if job.tiles.tile else 2 * len(identity.validation) + len(identity.known) + _DEFECTS
    of_image, masks = sum(map(math.prod, shapes)), math.prod(shapes[0][1:])
    corrupted = of_image + masks if architecture(job.architecture).loss_terms else 0
    return _HALF * views * (of_image + corrupted) + _FLOAT * judged * of_image


def _encoded_shapes(job: JobConfig) -> list[tuple[int, ...]]:
    """Return the shapes C×H×W of an image's features, stage by stage; none without a frozen encoder."""
    with untrained(), torch.no_grad():
        model = build(job.architecture, **job.model)
        if isinstance(model, SelfTraining) or not model.has_frozen_encoder:
            return []
        encoded = model.eval().encode(torch.zeros(1, _COLOURS, *job.view))
    return [tuple(feature_BCHW.shape[1:]) for feature_BCHW in encoded]


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
