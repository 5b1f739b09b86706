"""A finished model, ready to predict: network, scorer, threshold and where it came from; saved, loaded, pulled.

Shapes: B images, H×W pixels; `image_BCHW` is float32 RGB in [0, 1], `map_B1HW` higher where more anomalous.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import platform
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image

from msad.bundle import bundle_files
from msad.bundle.images import ImageLike, fit_maps, to_array, to_network
from msad.data_io.remarks import ReadingRemarks
from msad.data_io.wide import FULL
from msad.errors import BundleError, ConfigError, first_line
from msad.models.backbones import untrained
from msad.models.base import AnomalyModel, SelfTraining
from msad.models.errors import ModelError
from msad.models.registry import PREFIX, build, is_own, provider
from msad.models.scoring import Scorer, Scoring
from msad.models.tiling import Tiled, tiled
from msad.training.cuda_graphs import ReplayedScoring
from msad.training.job_config import JobConfig

NORMALISATION = "RGB / 255"
_LARGEST_NUMBER = 1 << 15  # of a width, a depth, an image's side in a description that may come from anywhere
_PIXELS_AT_ONCE = 1 << 22  # through network and scorer: 64 images of 256 pixels, one of 2048

SHOWN_SIZE = (640, 640)  # of a prediction in a notebook, at most


@dataclass(frozen=True)
class Prediction:
    """What a bundle says about one image.

    Parameters
    ----------
    score
        Higher is more anomalous; only comparable with scores of the same bundle.
    is_anomalous
        Whether the score is above the threshold.
    anomaly_map
        float32 H×W at the image's own size.
    threshold
        Of the bundle.
    source
        The image as it was given, for the picture that a notebook shows.
    bit_depth
        Bits as which the source is read where it has more than 8.
    """

    score: float
    is_anomalous: bool
    anomaly_map: np.ndarray = field(repr=False)
    threshold: float = field(default=math.nan, repr=False)
    source: ImageLike | None = field(default=None, repr=False, compare=False)
    bit_depth: int = field(default=FULL, repr=False, compare=False)

    def overlay(self) -> np.ndarray:
        """Return the image with the map over it, uint8 H×W×3; see `msad.bundle.heatmaps.overlay`."""
        from msad.bundle.heatmaps import overlay

        return overlay(to_array(self.source, self.bit_depth), self.anomaly_map, self.threshold)

    def _repr_png_(self) -> bytes | None:
        from msad.bundle.inline import png

        return None if self.source is None else png(self.overlay(), SHOWN_SIZE)

    def _repr_html_(self) -> str | None:
        from msad.bundle.inline import image_tag

        if self.source is None:
            return None
        verdict = "anomalous" if self.is_anomalous else "good"
        caption = f"<p><b>{verdict}</b>: score {self.score:.3g}, threshold {self.threshold:.3g}</p>"
        return caption + image_tag(self.overlay(), SHOWN_SIZE)


@dataclass
class Bundle:
    """One finished model, ready to predict.

    Parameters
    ----------
    model, scorer
        The trained network and the fitted blend of its maps.
    threshold
        Image scores above it are called anomalous.
    job
        The configuration the weights came from.
    provenance
        JSON values: run ID, the data's `identity`, validation figures; `save` adds versions of msad, torch and Python.
    """

    model: AnomalyModel
    scorer: Scorer
    threshold: float
    job: JobConfig
    provenance: dict[str, Any] = field(default_factory=dict)
    _replayed: tuple[Scorer, ReplayedScoring] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not math.isfinite(self.threshold):
            raise BundleError(f"the threshold is {self.threshold}; it must be finite: did the training diverge?")
        self.model.eval().requires_grad_(False)

    def __repr__(self) -> str:
        job = self.job
        return (
            f"<bundle of {job.category}: {job.architecture} at {job.image_size} pixels, "
            f"threshold {self.threshold:.4g}, run {self.provenance.get('run_id') or 'unknown'}>"
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def fingerprint(self) -> str:
        """Return what tells this model from others wherever it lies: a SHA-256 of weights, statistics and settings."""
        settings = {"job": self.job.to_dict(), "scoring": self.scorer.scoring.to_dict()}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for tensors in (self.model.state_dict(), self.scorer.state()):
            for name, tensor in sorted(tensors.items()):
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().numpy())
        return digest.hexdigest()

    def save(self, directory: str | Path) -> Path:
        """Write the bundle; the folder appears complete or not at all.

        An older bundle at the same place is replaced; a folder that holds anything else is refused.

        Raises
        ------
        BundleError
            The folder is taken or cannot be written.
        """
        versions = {
            "msad": importlib.metadata.version("msad"),
            "torch": torch.__version__,
            "python": platform.python_version(),
            **dict(filter(None, [provider(self.job.architecture)])),
        }
        description = {
            "category": self.job.category,
            "architecture": self.job.architecture,
            "image_size": self.job.image_size,
            "normalisation": NORMALISATION,
            "threshold": self.threshold,
            "scoring": self.scorer.scoring.to_dict(),
            "pretrained": dict(self.model.pretrained),
            "job": self.job.to_dict(),
            "provenance": {**self.provenance, "versions": versions},
        }
        bundle_files.write(Path(directory), self.model.state_dict(), self.scorer.state(), description)
        return Path(directory)

    @classmethod
    def load(cls, directory: str | Path, device: str | torch.device | None = None) -> Bundle:
        """Read a bundle from its folder; `msad.load` takes a run's ID too.

        Parameters
        ----------
        directory
            As `save` has written it.
        device
            Where to put the model; by default the GPU if there is one, else the CPU.

        Raises
        ------
        BundleError
            There is no such folder, a file is missing or damaged, or the format is newer than this program.
        ConfigError
            There is no such device.
        """
        if not Path(directory).is_dir():
            raise BundleError(f"{directory}: no such folder; msad.load takes a run ID or CATEGORY@champion too")
        return _read(Path(directory), device)

    @torch.inference_mode()
    def score_batch(self, image_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Score images that already have the model's size.

        Parameters
        ----------
        image_BCHW
            float32 RGB in [0, 1], of `job.sides`, on any device.

        Returns
        -------
        tuple
            `map_B1HW` and `score_B`, on the bundle's device.
        """
        at_once = max(1, _PIXELS_AT_ONCE // (image_BCHW.shape[-2] * image_BCHW.shape[-1]))
        device = self.device
        score = self._replay() if device.type == "cuda" else self._score
        parts = [score(part.to(device)) for part in image_BCHW.split(at_once)]
        if len(parts) == 1:
            return parts[0]
        return torch.cat([map_B1HW for map_B1HW, _ in parts]), torch.cat([score_B for _, score_B in parts])

    def _score(self, image_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.scorer(self.model.anomaly_maps(image_BCHW))

    def _replay(self) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
        """Return what scores on a GPU: recorded, except models that are slow by nature or that nobody here wrote."""
        if isinstance(self.model, SelfTraining | Tiled):
            return self._score
        if self._replayed is None or self._replayed[0] is not self.scorer:
            self._replayed = self.scorer, ReplayedScoring(self._score, self.model)
        return self._replayed[1]

    @overload
    def predict(self, images: ImageLike, batch_size: int = ...) -> Prediction: ...
    @overload
    def predict(self, images: Sequence[ImageLike], batch_size: int = ...) -> list[Prediction]: ...
    def predict(self, images: ImageLike | Sequence[ImageLike], batch_size: int = 16) -> Prediction | list[Prediction]:
        """Score images of any size.

        Parameters
        ----------
        images
            One image: a path, a PIL image, or an array, uint8 or uint16: H×W×3 (RGB, not OpenCV's BGR), H×W×4 with
            transparency, or H×W (grey). Or several: a list of these, of any sizes, or a uint8 N×H×W×3 array. All become
            RGB as the training images did: more than 8 bits are read as of `job.bit_depth`, and what is above it is
            clipped, with a warning; transparency lies on black; the orientation that a file or PIL image states is
            applied.
        batch_size
            Images that go through the network at once.

        Returns
        -------
        Prediction or list of Prediction
            One for one, a list for a list; all maps of a list are in memory at once, float32 at their images' own size
            (`msad.bundle.predict.predict_folder` keeps only a few).

        Raises
        ------
        DataError
            A file cannot be decoded, or an array is of another kind.
        """
        if isinstance(images, (str, Path, Image.Image)) or (isinstance(images, np.ndarray) and images.ndim < 4):
            return self.predict([images])[0]
        predictions: list[Prediction] = []
        remarks = ReadingRemarks(self.job.bit_depth)
        for start in range(0, len(images), batch_size):
            predictions += self._predict_batch(images[start : start + batch_size], remarks)
        for remark in remarks.sentences():
            warnings.warn(remark, stacklevel=2)
        return predictions

    def _predict_batch(self, images: Sequence[ImageLike], remarks: ReadingRemarks) -> list[Prediction]:
        image_BCHW, sizes = to_network(images, self.job.sides, self.device, remarks)
        map_B1HW, score_B = self.score_batch(image_BCHW)
        maps = fit_maps(map_B1HW, sizes)
        return [
            Prediction(score, score > self.threshold, anomaly_map, self.threshold, image, self.job.bit_depth)
            for anomaly_map, score, image in zip(maps, score_B.tolist(), images, strict=True)
        ]


def _device(name: str | torch.device | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        raise ConfigError(f"device {name!r} cannot be used: {first_line(error)}") from error
    return device


def _advice(description: dict[str, Any]) -> str:
    """Say which package a bundle's architecture came from, where it is not msad's own."""
    versions = description.get("provenance", {}).get("versions", {})
    packages = [f"{name} {number}" for name, number in versions.items() if name not in ("msad", "torch", "python")]
    return f"; it was made with {' and '.join(packages)}" if packages else ""


def _refuse_another_network(job: JobConfig, tensors: Mapping[str, torch.Tensor]) -> None:
    """Compare the network that a description asks for with the tensors that came with it, before it takes memory.

    Only for msad's own: a detector of anomalib or of a user has buffers as large as its training images made them.
    """
    if is_own(job.architecture) or job.architecture.startswith(PREFIX):
        return
    numbers = {"image_size": max(job.sides), **job.model}
    for name, value in numbers.items():
        if isinstance(value, int) and value > _LARGEST_NUMBER:
            raise ModelError(f"{name} is {value}, more than any model's; do not use it")
    with torch.device("meta"):  # shapes without memory
        network = tiled(build(job.architecture, **job.model), job.tiles)
    wanted, found = ({name: part.shape for name, part in state.items()} for state in (network.state_dict(), tensors))
    if differing := sorted(name for name in wanted | found if wanted.get(name) != found.get(name)):
        raise ModelError(
            f"{bundle_files.DESCRIPTION_FILE} describes another network than {bundle_files.MODEL_FILE} holds: "
            f"{differing[0]} is {_shape(wanted.get(differing[0]))} there and {_shape(found.get(differing[0]))} here"
        )


def _shape(size: torch.Size | None) -> str:
    return "missing" if size is None else "×".join(map(str, size)) or "one number"


def _read(directory: Path, device: str | torch.device | None) -> Bundle:
    device = _device(device)
    description, model_tensors, scorer_tensors = bundle_files.read(directory)
    path = directory / bundle_files.DESCRIPTION_FILE
    if description.get("normalisation") != NORMALISATION:
        raise BundleError(f"{path}: unknown normalisation {description.get('normalisation')!r}; upgrade msad")
    try:
        job = JobConfig.from_dict(description["job"])
        scoring = Scoring.from_dict(description["scoring"])
        threshold, provenance = float(description["threshold"]), dict(description["provenance"])
        with untrained():  # a frozen backbone's weights are in the file too
            _refuse_another_network(job, model_tensors)
            model = tiled(build(job.architecture, **job.model), job.tiles)
        model.load_state_dict(model_tensors)
        scorer = Scorer.from_state(scoring, {name: tensor.to(device) for name, tensor in scorer_tensors.items()})
    except KeyError as error:
        raise BundleError(f"{path}: {error} is missing; pull the bundle again") from error
    except (AttributeError, TypeError, ValueError, RuntimeError, ArithmeticError, LookupError, MemoryError) as error:
        # ModelError is a ValueError whose text already says what to do; the others mean values of the wrong kind.
        advice = _advice(description) if isinstance(error, ModelError) else "; pull the bundle again"
        raise BundleError(f"{directory}: not a readable bundle: {error}{advice}") from error
    return Bundle(model.to(device, memory_format=torch.channels_last), scorer, threshold, job, provenance)
