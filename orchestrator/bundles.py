"""A finished model as a folder: weights, scoring, threshold and where it came from. No pickle on the load path.

    BUNDLE/
      bundle.json          job, scoring, threshold, provenance, SHA-256 of the two files below
      model.safetensors    the network's state
      scorer.safetensors   what the scorer learned from good images

Shapes: B images, H×W pixels; `image_BCHW` is float32 RGB in [0, 1], `map_B1HW` higher where more anomalous.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import json
import math
import os
import platform
import shutil
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from data_io.decode import decode, resize
from data_io.errors import DataError
from models.base import AnomalyModel
from models.errors import ModelError
from models.registry import build
from models.scoring import Scorer, Scoring
from orchestrator.errors import BundleError
from orchestrator.job_config import JobConfig

FORMAT = 1
NORMALISATION = "RGB / 255"
MODEL_FILE, SCORER_FILE, DESCRIPTION_FILE = "model.safetensors", "scorer.safetensors", "bundle.json"

ImageLike = np.ndarray | Image.Image | str | Path


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
    """

    score: float
    is_anomalous: bool
    anomaly_map: np.ndarray


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
        JSON values: run ID, data fingerprint, validation figures; `save` adds the versions of msad, torch and Python.
    """

    model: AnomalyModel
    scorer: Scorer
    threshold: float
    job: JobConfig
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not math.isfinite(self.threshold):
            raise BundleError(f"the threshold is {self.threshold}; it must be finite: did the training diverge?")
        self.model.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def save(self, directory: str | Path) -> Path:
        """Write the bundle; the folder appears complete or not at all.

        An older bundle at the same place is replaced; a folder that holds anything else is refused.

        Raises
        ------
        BundleError
            The folder is taken or cannot be written.
        """
        directory = Path(directory)
        beside = f".{directory.name}.{uuid.uuid4().hex[:8]}"
        unfinished, replaced = directory.with_name(f"{beside}.unfinished"), directory.with_name(f"{beside}.replaced")
        try:
            _refuse_foreign(directory)
            unfinished.mkdir(parents=True)
            checksums = {}
            for name, tensors in ((MODEL_FILE, self.model.state_dict()), (SCORER_FILE, self.scorer.state())):
                content = safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
                checksums[name] = hashlib.sha256(content).hexdigest()
                _write_through(unfinished / name, content)
            description = json.dumps(_json_safe(self._describe(checksums)), indent=2, allow_nan=False)
            _write_through(unfinished / DESCRIPTION_FILE, description.encode())
            # A folder cannot be renamed onto a full one, so the older bundle steps aside first.
            with contextlib.suppress(FileNotFoundError):
                directory.rename(replaced)
            unfinished.rename(directory)
        except OSError as error:
            raise BundleError(f"{directory}: the bundle cannot be written: {error.strerror or error}") from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
            shutil.rmtree(replaced, ignore_errors=True)
        return directory

    def _describe(self, checksums: Mapping[str, str]) -> dict[str, Any]:
        versions = {
            "msad": importlib.metadata.version("msad"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        return {
            "format": FORMAT,
            "category": self.job.category,
            "architecture": self.job.architecture,
            "image_size": self.job.image_size,
            "normalisation": NORMALISATION,
            "threshold": self.threshold,
            "scoring": self.scorer.scoring.to_dict(),
            "job": self.job.to_dict(),
            "provenance": {"versions": versions, **self.provenance},
            "sha256": dict(checksums),
        }

    @classmethod
    def load(
        cls,
        path_or_run_id: str | Path,
        device: str | torch.device | None = None,
        tracking_uri: str | None = None,
    ) -> Bundle:
        """Read a bundle from a folder or from the tracking store.

        Parameters
        ----------
        path_or_run_id
            A folder; or a string that is none: the ID of a run, or `CATEGORY@best`, which is pulled first.
        device
            Where to put the model; by default the GPU if there is one, else the CPU.
        tracking_uri
            The store a run is pulled from.

        Raises
        ------
        BundleError
            A file is missing or damaged, or the format is newer than this program.
        TrackingError
            There is no such run, or it has no bundle.
        """
        if Path(path_or_run_id).is_dir():
            return _read(Path(path_or_run_id), device)
        if isinstance(path_or_run_id, Path) or os.sep in path_or_run_id or path_or_run_id.startswith("."):
            raise BundleError(f"{path_or_run_id}: no such folder; give a bundle's folder, a run ID or CATEGORY@best")
        from orchestrator.model_store import pull

        with tempfile.TemporaryDirectory(prefix="msad-") as temporary:
            directory = Path(temporary) / "bundle"
            pull(path_or_run_id, directory, tracking_uri)
            return _read(directory, device)

    @torch.inference_mode()
    def score_batch(self, image_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Score images that already have the model's size.

        Parameters
        ----------
        image_BCHW
            float32 RGB in [0, 1], `job.image_size` square, on any device.

        Returns
        -------
        tuple
            `map_B1HW` and `score_B`, on the bundle's device.
        """
        return self.scorer(self.model.anomaly_maps(image_BCHW.to(self.device)))

    @overload
    def predict(self, images: ImageLike, batch_size: int = ...) -> Prediction: ...
    @overload
    def predict(self, images: Sequence[ImageLike], batch_size: int = ...) -> list[Prediction]: ...
    def predict(self, images: ImageLike | Sequence[ImageLike], batch_size: int = 16) -> Prediction | list[Prediction]:
        """Score images of any size.

        Parameters
        ----------
        images
            A uint8 H×W×3 array (RGB), a PIL image or a path; or a list of these, or a uint8 N×H×W×3 array.
        batch_size
            Images that go through the network at once.

        Returns
        -------
        Prediction or list of Prediction
            One for one, a list for a list.

        Raises
        ------
        DataError
            A file cannot be decoded, or an array is not uint8 RGB.
        """
        if isinstance(images, (str, Path, Image.Image)) or (isinstance(images, np.ndarray) and images.ndim < 4):
            return self._predict_batch([images])[0]
        predictions: list[Prediction] = []
        for start in range(0, len(images), batch_size):
            predictions += self._predict_batch(images[start : start + batch_size])
        return predictions

    def _predict_batch(self, images: Sequence[ImageLike]) -> list[Prediction]:
        arrays = [_to_array(image) for image in images]
        batch = np.stack([resize(array, self.job.image_size) for array in arrays])
        map_B1HW, score_B = self.score_batch(to_tensor(batch))
        return [
            Prediction(score, score > self.threshold, fit_map(anomaly_map, array.shape[:2]))
            for anomaly_map, score, array in zip(map_B1HW, score_B.tolist(), arrays, strict=True)
        ]


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """Turn uint8 N×H×W×3 into float32 `image_BCHW` in [0, 1]."""
    return torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2).div_(255)


def fit_map(map_1HW: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """Resize an anomaly map to (height, width), bilinearly and antialiased where it shrinks; float32 height×width."""
    fitted = F.interpolate(map_1HW[None].float(), size=tuple(size), mode="bilinear", antialias=True)
    return fitted[0, 0].cpu().numpy()


def _to_array(image: ImageLike) -> np.ndarray:
    if isinstance(image, (str, Path)):
        return decode(image)
    if isinstance(image, Image.Image):
        # Through a file in memory, so that every mode is converted as the training images were.
        file = io.BytesIO()
        ImageOps.exif_transpose(image).save(file, "TIFF")
        return decode("the image given", file.getvalue())
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        kind = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise DataError(f"an image must be a path, a PIL image or a uint8 H×W×3 array in RGB, not {kind}")
    return image


def _read(directory: Path, device: str | torch.device | None) -> Bundle:
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    description = _read_description(directory)
    try:
        job = JobConfig.from_dict(description["job"])
        scoring = Scoring.from_dict(description["scoring"])
        threshold, checksums = float(description["threshold"]), description["sha256"]
        provenance = dict(description["provenance"])
        tensors = {name: _read_tensors(directory / name, checksums[name]) for name in (MODEL_FILE, SCORER_FILE)}
        model = build(job.architecture, **job.model)
        model.load_state_dict(tensors[MODEL_FILE])
        scorer = Scorer.from_state(scoring, {key: value.to(device) for key, value in tensors[SCORER_FILE].items()})
    except KeyError as error:
        raise BundleError(f"{directory / DESCRIPTION_FILE}: {error} is missing; pull the bundle again") from error
    except (TypeError, ValueError, RuntimeError) as error:
        # ModelError is a ValueError whose text already says what to do; the others mean values of the wrong kind.
        advice = "" if isinstance(error, ModelError) else "; pull the bundle again"
        raise BundleError(f"{directory}: not a readable bundle: {error}{advice}") from error
    return Bundle(model.to(device), scorer, threshold, job, provenance)


def _read_description(directory: Path) -> dict[str, Any]:
    path = directory / DESCRIPTION_FILE
    try:
        description = json.loads(path.read_bytes())
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}; {directory} holds no bundle, or only part of one") from error
    except ValueError as error:
        raise BundleError(f"{path}: damaged ({error}); pull the bundle again") from error
    version = description.get("format") if isinstance(description, dict) else None
    if not isinstance(version, int):
        raise BundleError(f"{path}: this is not the description of a bundle")
    if version > FORMAT:
        raise BundleError(f"{path}: format {version} is newer than this program reads ({FORMAT}); upgrade msad")
    if description.get("normalisation") != NORMALISATION:
        raise BundleError(f"{path}: unknown normalisation {description.get('normalisation')!r}; upgrade msad")
    return description


def _read_tensors(path: Path, checksum: str) -> dict[str, torch.Tensor]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}; the bundle is incomplete, pull it again") from error
    if hashlib.sha256(content).hexdigest() != checksum:
        raise BundleError(f"{path}: damaged: its SHA-256 is not the one in {DESCRIPTION_FILE}; pull the bundle again")
    return safetensors.torch.load(content)


def _refuse_foreign(directory: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if any(directory.iterdir()) and not (directory / DESCRIPTION_FILE).is_file():
            raise BundleError(f"{directory}: holds something that is no bundle; choose another folder")


def _write_through(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _json_safe(value: Any) -> Any:
    """Replace what JSON has no word for: NaN and infinities by null, numpy numbers by Python's."""
    if isinstance(value, Mapping):
        return {str(key): _json_safe(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_safe(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
