"""What a bundle's files hold: a network is built from them only where it is the one that they describe."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from msad.bundle import bundle_files
from msad.data_io.shape import plain_size
from msad.errors import BundleError
from msad.models import backbones
from msad.models.base import AnomalyModel
from msad.models.errors import ModelError
from msad.models.registry import PREFIX, build, default_parameters, is_own, provider
from msad.models.scoring import Scorer, Scoring
from msad.models.tiling import tiled
from msad.training.job_config import JobConfig
from msad.training.validation import fixed_scoring

NORMALISATION = "RGB / 255"
_DEFAULTS_BEFORE = {"feature_memory": {"rows": 4000}, "feature_ensemble": {"rows": 4000}}
"""What an architecture's defaults were when a bundle kept nothing but what differed from them."""
_LARGEST_NUMBER = 1 << 17  # of a width, an image's side, a memory's places in a description from anywhere


class Contents(NamedTuple):
    """A trained network, its fitted scorer and thresholds, and what they came from; see `msad.bundle.bundles.Bundle`.

    `pixel_threshold` is None in bundles that were made before there was one.
    """

    model: AnomalyModel
    scorer: Scorer
    threshold: float
    job: JobConfig
    provenance: Mapping[str, Any]
    pixel_threshold: float | None


def write(directory: Path, contents: Contents) -> None:
    """Write a bundle's folder, or replace an older one; see `msad.bundle.bundle_files.write`."""
    model, scorer, threshold, job, provenance, pixel_threshold = contents
    versions = {
        "msad": importlib.metadata.version("msad"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        **dict(filter(None, [provider(job.architecture), *map(backbones.provider, model.pretrained)])),
    }
    description = {
        "category": job.category,
        "architecture": job.architecture,
        "image_size": job.image_size,
        "normalisation": NORMALISATION,
        "threshold": threshold,
        "pixel_threshold": pixel_threshold,
        "scoring": scorer.scoring.to_dict(),
        "scoring_chosen": scorer.scoring != fixed_scoring(model, job.view_size),
        "roi_share": None if scorer.roi is None else scorer.roi.share,
        "pretrained": dict(model.pretrained),
        "job": job.to_dict(),
        "parameters": {**_plain_defaults(job.architecture), **job.model},
        "provenance": {**provenance, "versions": versions},
    }
    bundle_files.write(directory, model.state_dict(), scorer.state(), description)


def read(directory: Path, device: torch.device) -> Contents:
    """Read a bundle's folder; network and scorer are on the device.

    Raises
    ------
    BundleError
        A file is missing or damaged, the format is newer than this program, or the files do not fit one another.
    """
    description, model_tensors, scorer_tensors = bundle_files.read(directory)
    path = directory / bundle_files.DESCRIPTION_FILE
    if description.get("normalisation") != NORMALISATION:
        raise BundleError(f"{path}: unknown normalisation {description.get('normalisation')!r}; upgrade msad")
    try:
        job = JobConfig.from_dict(description["job"])
        scoring = Scoring.from_dict(description["scoring"])
        threshold, provenance = float(description["threshold"]), dict(description["provenance"])
        pixel_threshold = description.get("pixel_threshold")
        pixel_threshold = None if pixel_threshold is None else float(pixel_threshold)
        parameters = {**description.get("parameters", _DEFAULTS_BEFORE.get(job.architecture, {})), **job.model}
        with backbones.untrained():  # a frozen backbone's weights are in the file too
            _refuse_another_network(job, parameters, model_tensors)
            model = tiled(build(job.architecture, **parameters), job.tiles)
        model.load_state_dict(model_tensors)
        scorer = Scorer.from_state(scoring, {name: tensor.to(device) for name, tensor in scorer_tensors.items()})
        if scorer.roi is not None and scorer.roi.inside_1HW.shape[1:] != job.sides:
            raise ModelError(f"its region of interest is not of {plain_size(job.sides)} pixels, as its images are")
    except KeyError as error:
        raise BundleError(f"{path}: {error} is missing; pull the bundle again") from error
    except (AttributeError, TypeError, ValueError, RuntimeError, ArithmeticError, LookupError, MemoryError) as error:
        # ModelError is a ValueError whose text already says what to do; the others mean values of the wrong kind.
        advice = _advice(description) if isinstance(error, ModelError) else "; pull the bundle again"
        raise BundleError(f"{directory}: not a readable bundle: {error}{advice}") from error
    model = model.to(device, memory_format=torch.channels_last)
    model.roi = scorer.roi
    return Contents(model, scorer, threshold, job, provenance, pixel_threshold)


def _plain_defaults(architecture: str) -> dict[str, Any]:
    """Return an architecture's defaults, which may be others tomorrow, where a description can hold them."""
    plain = str | int | float | list | tuple | None
    return {name: value for name, value in default_parameters(architecture).items() if isinstance(value, plain)}


def _advice(description: dict[str, Any]) -> str:
    """Say which package a bundle's architecture came from, where it is not msad's own."""
    versions = description.get("provenance", {}).get("versions", {})
    packages = [f"{name} {number}" for name, number in versions.items() if name not in ("msad", "torch", "python")]
    return f"; it was made with {' and '.join(packages)}" if packages else ""


def _refuse_another_network(job: JobConfig, parameters: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Compare the network that a description asks for with the tensors that came with it, before it takes memory.

    Only for msad's own: a detector of anomalib or of a user has buffers as large as its training images made them.
    """
    if is_own(job.architecture) or job.architecture.startswith(PREFIX):
        return
    numbers = {"image_size": max(job.sides), **parameters}
    for name, value in numbers.items():
        if isinstance(value, int) and value > _LARGEST_NUMBER:
            raise ModelError(f"{name} is {value}, more than any model's; do not use it")
    with torch.device("meta"):  # shapes without memory
        network = tiled(build(job.architecture, **parameters), job.tiles)
    wanted, found = ({name: part.shape for name, part in state.items()} for state in (network.state_dict(), tensors))
    if differing := sorted(name for name in wanted | found if wanted.get(name) != found.get(name)):
        raise ModelError(
            f"{bundle_files.DESCRIPTION_FILE} describes another network than {bundle_files.MODEL_FILE} holds: "
            f"{differing[0]} is {_shape(wanted.get(differing[0]))} there and {_shape(found.get(differing[0]))} here"
        )


def _shape(size: torch.Size | None) -> str:
    return "missing" if size is None else "×".join(map(str, size)) or "one number"
