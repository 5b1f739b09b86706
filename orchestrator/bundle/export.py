"""A bundle as one file that runs without this project: ONNX for any runtime, or `.pt2` for torch alone.

The file takes photographs as they are and gives score, verdict, map and mask: resizing, scoring and thresholds are in
the graph (`msad.models.detector`). It is written only once it has been run and agrees with the bundle; where the
network is to have fewer bits it cannot, and what that costs is told.
"""

from __future__ import annotations

import base64
import importlib.metadata
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.export import Dim, ExportedProgram

from msad.bundle import onnx_graph
from msad.bundle.bundles import Bundle
from msad.bundle.export_check import Exported, check
from msad.bundle.export_form import Form
from msad.bundle.export_images import calibration_batches, check_batches
from msad.bundle.onnx_precision import to_float16, to_int8
from msad.bundle.runtimes import METADATA_FILE, Run, in_onnxruntime, in_openvino, in_torch, require
from msad.errors import ConfigError, ExportError, first_line
from msad.models.detector import Detector
from msad.workspace import write_atomically

LICENCE = "MIT (msad)"
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def export(bundle: Bundle, to: Path, images: Sequence[Path] = (), form: Form | None = None) -> Exported:
    """Write a bundle as one file, checked against the bundle itself.

    Input `image`: uint8 N×H×W×3 in RGB, any number and size if not fixed. Outputs `score` (N), `is_anomalous` (N),
    `anomaly_map` and `mask` (N×H×W). In ONNX `threshold` and `pixel_threshold` are inputs too, which need not be given.
    What a line computer may want to know of the model is in the file's metadata.

    Parameters
    ----------
    bundle
        On the CPU.
    to
        `FILE.onnx` or `FILE.pt2`; replaced where it exists.
    images
        Image files, or folders of them, to check on; the first 8 are used. By default some photographs that come with
        scikit-image, at the model's size and others.
    form
        Fixed sizes, fewer bits, other runtimes; by default none of them.

    Raises
    ------
    ConfigError
        The name ends otherwise, a package is missing, or there are no images; nothing is written.
    ExportError
        The architecture cannot be exported, or the file differs from the bundle by more than `TOLERANCE`, or in a
        network of fewer bits gives what is no number.
    """
    form = form or Form()
    if to.suffix not in _FORMATS:
        raise ConfigError(f"{to}: the name says the format and must end in {' or '.join(_FORMATS)}")
    if to.suffix == ".onnx":
        require(_PACKAGES, "writing ONNX", "; a .pt2 file needs nothing more")
        require(form.also_in, "checking in it too")
    elif form.precision != "float32" or form.also_in:
        raise ConfigError(f"{to}: fewer bits and other runtimes are for ONNX files: name it {to.stem}.onnx")
    batches, calibrating = check_batches(images, bundle.job, form), calibration_batches(bundle.job, form)
    # The bundle answers first. That also fills the caches of constant matrices, which the graph then takes over.
    answers = [(batch, bundle.predict(batch)) for batch in batches]
    try:
        content, run = _FORMATS[to.suffix](_trace(bundle, form), _metadata(bundle, form), form, calibrating)
    except Exception as error:  # the exporters raise a dozen types; each means that the network cannot be such a graph
        cause = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = first_line(cause)
        raise ExportError(f"{to}: {bundle.job.architecture!r} cannot be exported in this format: {reason}") from error
    exact = form.precision == "float32"
    result = check(bundle, to, answers, run, exact=exact)
    for name in form.also_in:
        result.also_in[name] = check(bundle, to, answers, in_openvino(content), exact=exact, runtime=name)
    to.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(to, content)
    return result


@torch.no_grad()
def _trace(bundle: Bundle, form: Form) -> ExportedProgram:
    sides = bundle.job.sides
    thresholds = bundle.threshold, bundle.pixel_threshold
    detector = Detector(bundle.model, bundle.scorer, *thresholds, sides, form.photograph)
    # Sizes that differ from one another and from the model's, so that tracing takes none for a constant.
    height, width = form.photograph or (sides[0] + 5, sides[1] + 3)
    example = torch.zeros(form.batch or 2, height, width, 3, dtype=torch.uint8)
    sizes = {axis: Dim(name) for axis, name in form.open_sizes.items()}
    program = torch.export.export(detector, (example,), dynamic_shapes=(sizes,) if sizes else None)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def _to_onnx(
    program: ExportedProgram, metadata: dict[str, str], form: Form, calibrating: Sequence[np.ndarray]
) -> tuple[bytes, Run]:
    thresholds = {name: float(metadata[name]) for name in onnx_graph.THRESHOLDS}
    proto = onnx_graph.to_onnx(program, form.open_sizes, thresholds)
    if form.precision != "float32":
        layers = onnx_graph.layers(proto, program)
        proto = to_float16(proto, layers) if form.precision == "float16" else to_int8(proto, layers, calibrating)
    content = onnx_graph.finished(proto, metadata)
    return content, in_onnxruntime(content)[0]


def _to_torch(program: ExportedProgram, metadata: dict[str, str], *_: object) -> tuple[bytes, Run]:
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={METADATA_FILE: json.dumps(metadata)})
    return file.getvalue(), in_torch(file.getvalue())[0]


_FORMATS = {".onnx": _to_onnx, ".pt2": _to_torch}


def _metadata(bundle: Bundle, form: Form) -> dict[str, str]:
    """Return what a line computer may want to know, as ONNX keeps it: text by name."""
    job = bundle.job
    pretrained = [f"{name}: {terms}" for name, terms in bundle.model.pretrained.items()]
    known = {
        "category": job.category,
        "architecture": job.architecture,
        "threshold": repr(bundle.threshold),
        "pixel_threshold": repr(bundle.pixel_threshold),
        "image_size": str(job.image_size),
        "bit_depth": str(job.bit_depth),
        "batch": str(form.batch or "any"),
        "photograph_size": "any" if form.photograph is None else "x".join(map(str, form.photograph)),
        "precision": form.precision,
        "digest": bundle.fingerprint(),
        "licence": LICENCE,
        "region_of_interest": "all of the image" if bundle.roi is None else f"{bundle.roi.mean():.3f} of the image",
        "pretrained_weights": "; ".join(pretrained) or "none",
        "job": json.dumps(job.to_dict()),
    }
    provenance = {**bundle.provenance, "identity": bundle.provenance.get("identity", {}).get("digest")}
    names = ("run_id", "sweep", "identity", "code_version")
    known |= {name: str(provenance[name]) for name in names if provenance.get(name)}
    for name in ("false_alarms", "false_regions", "held_out"):
        if promised := bundle.provenance.get(name):
            known[name] = json.dumps(promised)
    of_images = bundle.provenance.get("identity", {})
    if defects := {name: of_images[name] for name in ("known", "taught") if of_images.get(name)}:
        known["known_defects"] = json.dumps(defects)  # which no measurement may be made on
    if bundle.roi is not None:
        known["roi_bits"] = base64.b64encode(np.packbits(bundle.roi)).decode()
    return known | {"msad": importlib.metadata.version("msad"), "torch": torch.__version__}
