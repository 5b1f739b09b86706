"""What several benchmarks begin with: the job of an architecture's defaults, its network on images, kept bundles."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msad.bundle.bundle_files import DESCRIPTION_FILE
from msad.bundle.bundles import Bundle
from msad.bundle.images import to_tensor
from msad.data_io.bit_depth import find_bit_depth
from msad.data_io.layout import find_layout
from msad.data_io.shape import find_ratio, fitted_size
from msad.models.base import AnomalyModel
from msad.models.registry import architecture, build
from msad.training.batches import FeatureBatches, ImageBatches
from msad.training.job_config import JobConfig
from msad.training.products import Products
from msad.training.training_data import TrainingData
from msad.training.validation import Fitted

CPU = torch.device("cpu")


def job(root: Path, category: str, seed: int, image_size: int | str = 256, family: str = "feature_memory") -> JobConfig:
    """Return an architecture's defaults at a size and bit depth that suit the category's images."""
    good = find_layout(root).train(root, category)
    settings: dict[str, Any] = {"image_size": fitted_size(image_size, find_ratio(good)), "seed": seed}
    settings |= {"bit_depth": find_bit_depth(good)} | architecture(family).training_defaults
    return JobConfig(category=category, architecture=family, **settings)


def bundle(job: JobConfig, fitted: Fitted) -> Bundle:
    """Return what a job delivers."""
    cuts = {"threshold": fitted.threshold, "pixel_threshold": fitted.pixel_threshold}
    return Bundle(model=fitted.model, scorer=fitted.scorer, job=job, **cuts)


def kept(options: argparse.Namespace) -> Iterator[Bundle]:
    """Load the bundles in the folder `--bundles`, as `quality.py` keeps them, of `--categories` alone."""
    for folder in sorted(file.parent for file in options.bundles.glob(f"*/{DESCRIPTION_FILE}")):
        bundle = Bundle.load(folder, CPU.type)
        if not options.categories or bundle.job.category in options.categories:
            yield bundle


def look(job: JobConfig, data: TrainingData) -> tuple[AnomalyModel, FeatureBatches | ImageBatches]:
    """Return a network that takes no steps after its look at the good images, and what it is judged on."""
    torch.manual_seed(job.seed)
    model = build(job.architecture, **job.model)
    products = Products(job, [data], model, CPU)
    products.adapt()
    return model.eval(), products.batches[0]


@torch.no_grad()
def maps(model: AnomalyModel, images_NHWC: np.ndarray, at_once: int = 16) -> dict[str, Tensor]:
    """Return a network's maps of uint8 images, by name, N×1×H×W."""
    parts = [
        model.anomaly_maps(to_tensor(images_NHWC[first : first + at_once], CPU))
        for first in range(0, len(images_NHWC), at_once)
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
