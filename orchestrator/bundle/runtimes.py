"""Programs that run an exported file: each gives, for uint8 N×H×W×3, score, verdict, map and mask as arrays."""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Callable, Sequence

import numpy as np

from msad.errors import ConfigError

INPUT, OUTPUTS = "image", ("score", "is_anomalous", "anomaly_map", "mask")
METADATA_FILE = "msad.json"
"""Name of the metadata inside a `.pt2` file."""

Run = Callable[[np.ndarray], Sequence[np.ndarray]]
Opened = tuple[Run, dict[str, str]]
"""What runs a file, and its metadata."""


def in_onnxruntime(content: bytes, device: str = "cpu", threads: int = 0) -> Opened:
    """Open an ONNX file in onnxruntime.

    Parameters
    ----------
    content
        Of the file.
    device
        `cpu`, or `cuda`, which needs onnxruntime-gpu; there convolutions are kept in full float32.
    threads
        Of a CPU; 0: as many as onnxruntime wants.

    Raises
    ------
    ConfigError
        This onnxruntime has no such device.
    """
    import onnxruntime

    providers = {"cpu": "CPUExecutionProvider", "cuda": ("CUDAExecutionProvider", {"use_tf32": 0})}
    there = onnxruntime.get_available_providers()
    if device not in providers or (device == "cuda" and "CUDAExecutionProvider" not in there):
        raise ConfigError(
            f"device {device!r} cannot be used: a file runs on cpu or cuda, and onnxruntime as installed here has "
            f"{', '.join(there)}; onnxruntime-gpu has NVIDIA's"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # it warns of every input that has a default
    session = onnxruntime.InferenceSession(content, options, providers=[providers[device]])
    return lambda batch: session.run(OUTPUTS, {INPUT: batch}), session.get_modelmeta().custom_metadata_map


def in_openvino(content: bytes) -> Run:
    """Return what runs an ONNX file in OpenVINO on the CPU, in full float32."""
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(core.read_model(content, b""), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda batch: [compiled([batch])[name] for name in OUTPUTS]


def in_torch(content: bytes) -> Opened:
    """Open a `.pt2` file in torch on the CPU."""
    import torch

    extra = {METADATA_FILE: ""}
    program = torch.export.load(io.BytesIO(content), extra_files=extra).module()
    return lambda batch: tuple(part.numpy() for part in program(torch.tensor(batch))), json.loads(extra[METADATA_FILE])


def require(packages: Sequence[str], purpose: str, otherwise: str = "") -> None:
    """Refuse to go on where a package is missing, naming all that are."""
    missing = []
    for name in packages:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise ConfigError(
            f"{purpose} needs {', '.join(missing)}, not installed here: pip install {' '.join(packages)}{otherwise}"
        )
