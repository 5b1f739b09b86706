"""An exported file as a model that can be measured: it scores images, and says what it was made from."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np

from msad.bundle.runtimes import Opened, in_onnxruntime, in_torch, require
from msad.errors import BundleError, ConfigError, MsadError, first_line
from msad.training.job_config import JobConfig

SUFFIXES = (".onnx", ".pt2")
PROVENANCE = {"identity": "known_defects"} | {name: name for name in ("false_alarms", "false_regions", "held_out")}
"""What of a bundle's provenance measuring needs, and the metadata that it is in."""


class ExportedModel:
    """What a file written by `msad.bundle.export.export` holds, with the attributes of a bundle that measuring needs.

    Parameters
    ----------
    path
        `FILE.onnx` or `FILE.pt2`.
    device, threads
        See `msad.bundle.runtimes.in_onnxruntime`; a `.pt2` file is run on the CPU, with torch's threads.

    Attributes
    ----------
    batch, photograph
        Images in a call, and their height and width, where it takes no others; else None.
    roi
        See `msad.bundle.bundles.Bundle.roi`.

    Raises
    ------
    ConfigError
        There is no such file, a package is missing, or there is no such device.
    BundleError
        It is no such file.
    """

    def __init__(self, path: Path, device: str = "cpu", threads: int = 0) -> None:
        self.path, self.device, self.threads = path, device, threads
        self._run, self.metadata = _open(path, device, threads)
        try:
            self.job = JobConfig.from_dict(json.loads(self.metadata["job"]))
            self.threshold, self.pixel_threshold = (
                float(self.metadata[name]) for name in ("threshold", "pixel_threshold")
            )
            batch, size = self.metadata["batch"], self.metadata["photograph_size"]
            self.batch = None if batch == "any" else int(batch)
            self.photograph = None if size == "any" else tuple(map(int, size.split("x")))
            self.provenance: dict[str, Any] = {
                name: json.loads(self.metadata[kept]) for name, kept in PROVENANCE.items() if kept in self.metadata
            }
            self.roi = _unpacked(self.metadata["roi_bits"], self.job.sides) if "roi_bits" in self.metadata else None
        except (KeyError, ValueError, TypeError) as error:
            raise BundleError(f"{path}: no file that this msad has exported ({error!r}); export it again") from error

    @property
    def takes_its_own_size(self) -> bool:
        """Whether it takes images of the size that its network works on, so that nothing is resized."""
        return self.photograph in (None, self.job.sides)

    def score_images(self, image_NHWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Score images of one size.

        Parameters
        ----------
        image_NHWC
            uint8 N×H×W×3.

        Returns
        -------
        tuple
            Maps, float32 N×H×W, and scores, float32 N.
        """
        at_once, parts = self.batch or len(image_NHWC), []
        for start in range(0, len(image_NHWC), at_once):
            part = image_NHWC[start : start + at_once]
            filled = np.resize(part, (at_once, *part.shape[1:]))  # a file of a fixed batch takes no smaller one
            score_N, _, map_NHW, _ = self._run(filled)
            parts.append((map_NHW[: len(part)], score_N[: len(part)]))
        maps, scores = zip(*parts, strict=True)
        return np.concatenate(maps), np.concatenate(scores)


def _unpacked(bits: str, sides: tuple[int, int]) -> np.ndarray:
    """Return a region of interest, bool h×w, from its bits in base64."""
    packed = np.frombuffer(base64.b64decode(bits), np.uint8)
    return np.unpackbits(packed, count=sides[0] * sides[1]).astype(bool).reshape(sides)


def _open(path: Path, device: str, threads: int) -> Opened:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    if path.suffix == ".onnx":
        require(("onnxruntime",), f"running {path}")
    elif device != "cpu":
        raise ConfigError(f"{path}: device {device!r} cannot be used: a .pt2 file runs on the cpu here")
    try:
        return in_onnxruntime(content, device, threads) if path.suffix == ".onnx" else in_torch(content)
    except MsadError:
        raise
    except Exception as error:  # both runtimes have a type for every reason, most of which they do not export
        raise BundleError(f"{path}: no exported file, or a damaged one: {first_line(error)}") from error
