"""The network inside an ONNX graph with fewer bits: half floats, or whole numbers of 8 bits.

Only the network loses bits: what lies between its first and its last layer with weights. Photographs are resized, and
maps are made and scored, in float32 as before. What it costs is for the caller to measure.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from msad.bundle.runtimes import INPUT

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

PRECISIONS = ("float32", "float16", "int8")


def to_float16(proto: ModelProto, layers: list[NodeProto]) -> ModelProto:
    """Compute the network in half floats, for GPUs: a CPU is slower with them.

    Parameters
    ----------
    proto
        A detector's graph.
    layers
        Its nodes with weights, see `msad.bundle.onnx_graph.layers`.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    # The converter would round what lies outside as well, on its way from node to node: it sees the network alone.
    names = _between(proto, layers)
    inner = [node for node in proto.graph.node if node.name in names]
    held = {tensor.name for tensor in proto.graph.initializer}
    made, read = ({name for node in inner for name in part(node)} for part in (_outputs, _inputs))
    others = {name for node in proto.graph.node if node.name not in names for name in node.input}
    inputs, outputs = sorted(read - made - held), sorted(made & others)
    typed = {one.name: one for one in onnx.shape_inference.infer_shapes(proto).graph.value_info}
    network = onnx.helper.make_graph(
        inner,
        "network",
        [typed[name] for name in inputs],
        [typed[name] for name in outputs],
        [tensor for tensor in proto.graph.initializer if tensor.name in read],
    )
    opsets = {"opset_imports": proto.opset_import, "ir_version": proto.ir_version}
    half = convert_float_to_float16(onnx.helper.make_model(network, **opsets), keep_io_types=True)
    apart = {tensor.name for tensor in network.initializer} - others  # what both sides read stays beside the halves
    half = onnx.compose.add_prefix(half, "half/", rename_inputs=False, rename_outputs=False)
    graph = proto.graph
    nodes = [node for node in graph.node if node.name not in names]
    kept = [tensor for tensor in graph.initializer if tensor.name not in apart]
    for field, values in (
        (graph.node, [*nodes, *half.graph.node]),
        (graph.initializer, [*kept, *half.graph.initializer]),
        (graph.value_info, []),
    ):
        del field[:]
        field.extend(values)
    OnnxModel.graph_topological_sort(graph)
    return proto


def to_int8(proto: ModelProto, layers: list[NodeProto], batches: Iterable[np.ndarray]) -> ModelProto:
    """Compute the network in whole numbers of 8 bits, scaled by what good images show, for CPUs.

    The first layer and convolutions of single channels stay in float32: they are a small part of the work, and lose the
    most. The others get a scale for each output channel.

    Parameters
    ----------
    proto, layers
        See `to_float16`.
    batches
        uint8 N×H×W×3 of good images, as the graph takes them.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self._batches, None)
            return None if batch is None else {INPUT: batch}

    chosen = [node.name for node in layers[1:] if not _is_depthwise(node)]
    with tempfile.TemporaryDirectory() as folder, _quiet():
        file = Path(folder) / "int8.onnx"
        quantize_static(
            proto,
            file,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=sorted({node.op_type for node in layers}),
            nodes_to_quantize=chosen,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            # Unsigned both: CPUs without VNNI add products with signed ones in 16 bits, which overflow.
            weight_type=QuantType.QUInt8,
        )
        return onnx.load(file)


def _between(proto: ModelProto, layers: list[NodeProto]) -> set[str]:
    """Return the names of the nodes on a way from one layer to another."""
    makes = {name: node for node in proto.graph.node for name in node.output}
    reads: defaultdict[str, list[NodeProto]] = defaultdict(list)
    for node in proto.graph.node:
        for name in node.input:
            reads[name].append(node)
    after = _reached(layers, lambda node: [other for name in node.output for other in reads[name]])
    before = _reached(layers, lambda node: [makes[name] for name in _inputs(node) if name in makes])
    return after & before


def _reached(starts: list[NodeProto], step: Callable[[NodeProto], list[NodeProto]]) -> set[str]:
    found, waiting = {node.name for node in starts}, list(starts)
    while waiting:
        new = [node for node in step(waiting.pop()) if node.name not in found]
        found |= {node.name for node in new}
        waiting += new
    return found


def _inputs(node: NodeProto) -> list[str]:
    return [name for name in node.input if name]


def _outputs(node: NodeProto) -> list[str]:
    return list(node.output)


def _is_depthwise(node: NodeProto) -> bool:
    return any(one.name == "group" and one.i > 1 for one in node.attribute)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what onnxruntime's quantization prints and logs to itself."""
    import onnxruntime

    logging.disable(logging.WARNING)
    onnxruntime.set_default_logger_severity(3)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        onnxruntime.set_default_logger_severity(2)
        logging.disable(logging.NOTSET)
