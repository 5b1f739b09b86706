"""A bundle as one file that runs without this project: ONNX for any runtime, or `.pt2` for torch alone.

The file takes photographs as they are and gives score, verdict and map: resizing, scoring and threshold are in the
graph (`msad.models.detector`). It is written only once it has been run and agrees with the bundle.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import io
import json
import logging
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.export import Dim, ExportedProgram

from msad.bundle.bundles import Bundle
from msad.data_io.decode import decode, resize
from msad.data_io.files import IMAGE_SUFFIXES, images_below
from msad.data_io.photographs import load_photograph
from msad.errors import ConfigError, ExportError, first_line
from msad.models.detector import Detector
from msad.workspace import write_atomically

INPUT, OUTPUTS = "image", ("score", "is_anomalous", "anomaly_map")
SIZES = ("images", "height", "width")
"""The names of the input's sizes that a file leaves open."""

METADATA_FILE = "msad.json"
"""Name of the metadata inside a `.pt2` file."""

OPSET = 18  # of 2022, which every runtime in use knows; nothing newer is needed
TOLERANCE = 0.001
"""Largest difference between file and bundle, as a share of the range of the bundle's anomaly maps."""

CHECKED = 8  # images at most
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

Run = Callable[[np.ndarray], tuple[np.ndarray, ...]]


@dataclass(frozen=True)
class Exported:
    """A written file, and how far it is from the bundle at most: `score` and `map` on the images it was checked on.

    Both are in the unit of the scores; `range` is the range of the anomaly maps there.
    """

    path: Path
    images: int
    score: float
    map: float
    range: float


def export(bundle: Bundle, to: Path, images: Sequence[Path] = ()) -> Exported:
    """Write a bundle as one file, checked against the bundle itself.

    Input `image`: uint8 N×H×W×3 in RGB, any number and size. Outputs `score` (N), `is_anomalous` (N) and `anomaly_map`
    (N×H×W). The threshold, the category, the run ID and more are in the file's metadata.

    Parameters
    ----------
    bundle
        On the CPU.
    to
        `FILE.onnx` or `FILE.pt2`; replaced where it exists.
    images
        Image files, or folders of them, to check on; the first 8 are used. By default some photographs that come with
        scikit-image, at the model's size and others.

    Raises
    ------
    ConfigError
        The name ends otherwise, a package is missing, or there are no images; nothing is written.
    ExportError
        The architecture cannot be exported, or the file differs from the bundle by more than `TOLERANCE`.
    """
    if to.suffix not in _FORMATS:
        raise ConfigError(f"{to}: the name says the format and must end in {' or '.join(_FORMATS)}")
    if to.suffix == ".onnx":
        _require_packages()
    batches = _batches(images, bundle.job.sides, bundle.job.bit_depth)
    # The bundle answers first. That also fills the caches of constant matrices, which the graph then takes over.
    expected = [[(p.score, p.is_anomalous, p.anomaly_map) for p in bundle.predict(batch)] for batch in batches]
    try:
        content, run = _FORMATS[to.suffix](_trace(bundle), _metadata(bundle))
    except Exception as error:  # the exporters raise a dozen types; each means that the network cannot be such a graph
        cause = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = first_line(cause)
        raise ExportError(f"{to}: {bundle.job.architecture!r} cannot be exported in this format: {reason}") from error
    result = _compare(bundle, to, batches, expected, run)
    to.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(to, content)
    return result


@torch.no_grad()
def _trace(bundle: Bundle) -> ExportedProgram:
    detector = Detector(bundle.model, bundle.scorer, bundle.threshold, bundle.job.sides)
    # Sizes that differ from one another and from the model's, so that tracing takes none for a constant.
    height, width = bundle.job.sides
    example = torch.zeros(2, height + 5, width + 3, 3, dtype=torch.uint8)
    sizes = {axis: Dim(name) for axis, name in enumerate(SIZES)}
    program = torch.export.export(detector, (example,), dynamic_shapes=(sizes,))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def _to_onnx(program: ExportedProgram, metadata: dict[str, str]) -> tuple[bytes, Run]:
    import onnx
    import onnxruntime

    for name in ("onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)  # they tell of the exporter's own insides
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        proto = torch.onnx.export(
            program,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=OUTPUTS,
            dynamic_shapes=(dict(enumerate(SIZES)),),
            dynamo=True,
            verbose=False,
        ).model_proto
    for part in (*proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output, proto.graph):
        del part.metadata_props[:]  # the exporter's notes on every node, larger than the graph
    onnx.helper.set_model_props(proto, metadata)
    onnx.checker.check_model(proto)
    content = proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda batch: session.run(OUTPUTS, {INPUT: batch})


def _to_torch(program: ExportedProgram, metadata: dict[str, str]) -> tuple[bytes, Run]:
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={METADATA_FILE: json.dumps(metadata)})
    content = file.getvalue()
    loaded = torch.export.load(io.BytesIO(content)).module()
    return content, lambda batch: tuple(part.numpy() for part in loaded(torch.tensor(batch)))


_FORMATS = {".onnx": _to_onnx, ".pt2": _to_torch}


def _metadata(bundle: Bundle) -> dict[str, str]:
    """Return what a line computer may want to know, as ONNX keeps it: text by name."""
    pretrained = [f"{name}: {terms}" for name, terms in bundle.model.pretrained.items()]
    known = {
        "category": bundle.job.category,
        "architecture": bundle.job.architecture,
        "threshold": repr(bundle.threshold),
        "image_size": str(bundle.job.image_size),
        "bit_depth": str(bundle.job.bit_depth),
        "region_of_interest": "all of the image" if bundle.roi is None else f"{bundle.roi.mean():.3f} of the image",
        "pretrained_weights": "; ".join(pretrained) or "none",
    }
    provenance = {**bundle.provenance, "identity": bundle.provenance.get("identity", {}).get("digest")}
    names = ("run_id", "sweep", "identity", "code_version")
    known |= {name: str(provenance[name]) for name in names if provenance.get(name)}
    return known | {"msad": importlib.metadata.version("msad"), "torch": torch.__version__}


def _batches(paths: Sequence[Path], sides: tuple[int, int], bit_depth: int) -> list[np.ndarray]:
    """Return uint8 N×H×W×3 batches to check on: real photographs, several sizes, one and several at once."""
    if paths:
        found = [file for path in paths for file in (images_below(path) if path.is_dir() else [path])]
        files = [file for file in found if file.suffix.lower() in IMAGE_SUFFIXES][:CHECKED]
        if not files:
            raise ConfigError(f"no image ({', '.join(IMAGE_SUFFIXES)}) in {', '.join(map(str, paths))}")
        return [decode(file, bit_depth=bit_depth)[None] for file in files]
    cat, coffee, brick = (load_photograph(name) for name in ("chelsea.png", "coffee.png", "brick.png"))
    own_size = np.stack([resize(image, sides) for image in (coffee, brick, cat)])
    part = brick[None, : sides[0] // 2 + 3, : sides[1] // 2 - 3]
    return [own_size, cat[None], np.stack([coffee, coffee[:, ::-1]]), part]


def _compare(bundle: Bundle, to: Path, batches: list[np.ndarray], expected: list[list[tuple]], run: Run) -> Exported:
    maps = [anomaly_map for batch in expected for _, _, anomaly_map in batch]
    spread = float(max(part.max() for part in maps) - min(part.min() for part in maps))
    worst_score = worst_map = 0.0
    for batch, answers in zip(batches, expected, strict=True):
        found = run(np.ascontiguousarray(batch))
        for (score, verdict, anomaly_map), its_score, its_verdict, its_map in zip(answers, *found, strict=True):
            near = abs(score - bundle.threshold) <= TOLERANCE * spread
            agrees = bool(its_verdict) == verdict or near
            worst_score = max(worst_score, _distance(its_score, score) if agrees else math.inf)
            worst_map = max(worst_map, _distance(its_map, anomaly_map))
    result = Exported(to, sum(map(len, batches)), worst_score, worst_map, spread)
    if max(result.score, result.map) > TOLERANCE * spread:
        raise ExportError(
            f"{to}: not written: it would differ from the model by {result.score:.3g} in a score and "
            f"{result.map:.3g} in a map whose range is {spread:.3g}; {TOLERANCE:.1%} of the range is allowed. "
            f"Try the other format ({' or '.join(name for name in _FORMATS if name != to.suffix)})"
        )
    return result


def _distance(found: np.ndarray, expected: np.ndarray | float) -> float:
    """Return the largest difference; infinite where a value is not finite."""
    largest = float(np.abs(np.asarray(found, np.float64) - expected).max())
    return largest if math.isfinite(largest) else math.inf


def _require_packages() -> None:
    missing = []
    for name in _PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise ConfigError(
            f"writing ONNX needs {', '.join(missing)}, not installed here: pip install {' '.join(_PACKAGES)}; "
            "a .pt2 file needs nothing more"
        )
