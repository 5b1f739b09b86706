"""A finished model, ready to predict: network, scorer, thresholds and where they came from.

Shapes: B images, H×W pixels; `image_BCHW` is float32 RGB in [0, 1], `map_B1HW` higher where more anomalous.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image

from msad.bundle import contents
from msad.bundle.batch_scoring import BatchScoring, find_device
from msad.bundle.contents import Contents
from msad.bundle.drift import Drift, compare
from msad.bundle.images import ImageLike, fit_maps, to_network, to_tensor
from msad.bundle.map_scale import anchor
from msad.bundle.prediction import Prediction
from msad.data_io.image_statistics import STATISTICS
from msad.data_io.remarks import ReadingRemarks
from msad.errors import BundleError
from msad.models.base import AnomalyModel
from msad.models.scoring import Scorer
from msad.training.job_config import JobConfig


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
    pixel_threshold
        Pixels of a map above it belong to a region. None, as in bundles that were made before there was one, becomes
        the middle of the colour scale: `threshold`, but at least 3 deviations. It promises nothing then.
    """

    model: AnomalyModel
    scorer: Scorer
    threshold: float
    job: JobConfig
    provenance: dict[str, Any] = field(default_factory=dict)
    pixel_threshold: float | None = None
    _scoring: BatchScoring | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not math.isfinite(self.threshold):
            raise BundleError(f"the threshold is {self.threshold}; it must be finite: did the training diverge?")
        if self.pixel_threshold is None:
            self.pixel_threshold = anchor(self.threshold)
        if not math.isfinite(self.pixel_threshold):
            raise BundleError(f"the pixel threshold is {self.pixel_threshold}; it must be finite")
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

    @property
    def roi(self) -> np.ndarray | None:
        """The region of interest at the model's size, bool h×w; None where all of an image counts."""
        region = self.scorer.roi
        return None if region is None else region.inside_1HW[0].cpu().numpy()

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
        parts = (self.model, self.scorer, self.threshold, self.job, self.provenance, self.pixel_threshold)
        contents.write(Path(directory), Contents(*parts))
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
        return cls(*contents.read(Path(directory), find_device(device)))

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
        if self._scoring is None or not self._scoring.belongs_to(self.model, self.scorer):
            self._scoring = BatchScoring(self.model, self.scorer)
        return self._scoring(image_BCHW)

    def score_images(self, image_NHWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Score uint8 N×H×W×3 of the model's size; return maps, float32 N×H×W, and scores, float32 N."""
        map_N1HW, score_N = self.score_batch(to_tensor(image_NHWC, self.device))
        return map_N1HW[:, 0].cpu().numpy(), score_N.cpu().numpy()

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

    def drift(self, predictions: Sequence[Prediction]) -> Drift:
        """Compare predicted images with the held-out good ones that the thresholds rest on; see `msad.bundle.drift`."""
        measured = [prediction.statistics() for prediction in predictions]
        seen = {name: [one[name] for one in measured] for name in STATISTICS}
        seen["score"] = [prediction.score for prediction in predictions]
        return compare(self.provenance.get("held_out"), self.threshold, seen)

    def _predict_batch(self, images: Sequence[ImageLike], remarks: ReadingRemarks) -> list[Prediction]:
        image_BCHW, sizes = to_network(images, self.job.sides, self.device, remarks)
        map_B1HW, score_B = self.score_batch(image_BCHW)
        maps = fit_maps(map_B1HW, sizes)
        known = {name: getattr(self, name) for name in ("threshold", "pixel_threshold")}
        known |= {"bit_depth": self.job.bit_depth, "roi": self.roi}
        return [
            Prediction(score, score > self.threshold, anomaly_map, source=image, **known)
            for anomaly_map, score, image in zip(maps, score_B.tolist(), images, strict=True)
        ]
