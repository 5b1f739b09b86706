"""From a traced detector to an ONNX graph: thresholds as inputs with defaults, metadata, nothing of the exporter.

In ONNX an input that is an initializer too is optional: whoever feeds nothing gets the initializer.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch.export import ExportedProgram

from msad.bundle.runtimes import INPUT, OUTPUTS

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

OPSET = 18  # of 2022, which every runtime in use knows; nothing newer is needed
THRESHOLDS = {"threshold": "is_anomalous", "pixel_threshold": "mask"}
"""Each optional input, and the output that it cuts."""

_FOLDED = 1 << 22  # numbers of a constant that is computed here instead of in every session; a memory's bank stays half


def to_onnx(program: ExportedProgram, open_sizes: Mapping[int, str], thresholds: Mapping[str, float]) -> ModelProto:
    """Return the graph of a `msad.models.detector.Detector`.

    Parameters
    ----------
    program
        Traced, with the sizes of `open_sizes` left open.
    thresholds
        The defaults of `THRESHOLDS`.
    open_sizes
        By axis of the images the name of each size that may be any.
    """

    for name in ("onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)  # they tell of the exporter's own insides
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(
            program,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=OUTPUTS,
            dynamic_shapes=(dict(open_sizes),) if open_sizes else None,
            dynamo=True,
            verbose=False,
        )
    _fold(exported.model)
    proto = exported.model_proto
    for part in (*proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output, proto.graph):
        del part.metadata_props[:]  # the exporter's notes on every node, larger than the graph
    _open_thresholds(proto, thresholds)
    return proto


def _open_thresholds(proto: ModelProto, thresholds: Mapping[str, float]) -> None:
    """Make inputs of what scores and pixels are compared with.

    The exporter makes one of constants that are equal; an input is to be read by its own comparison alone.
    """
    import onnx

    graph = proto.graph
    for tensor in graph.initializer:
        if tensor.name in THRESHOLDS:
            tensor.name = f"constant_{tensor.name}"
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name in THRESHOLDS:
                node.input[place] = f"constant_{name}"
    makes = {name: node for node in graph.node for name in node.output}
    for name, output in THRESHOLDS.items():
        makes[output].input[1] = name
        graph.initializer.append(onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, [], [thresholds[name]]))
        graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, []))
    read = {name for node in graph.node for name in node.input}
    held = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(held)


def layers(proto: ModelProto, program: ExportedProgram) -> list[NodeProto]:
    """Return the nodes that hold the network's weights: its convolutions and products with a matrix."""
    weights = set(program.graph_signature.inputs_to_parameters.values())
    kinds = ("Conv", "ConvTranspose", "Gemm", "MatMul")
    return [node for node in proto.graph.node if node.op_type in kinds and weights & set(node.input)]


def finished(proto: ModelProto, metadata: Mapping[str, str]) -> bytes:
    """Return the content of a file: the graph, checked, with its metadata."""
    import onnx

    onnx.helper.set_model_props(proto, dict(metadata))
    onnx.checker.check_model(proto)
    return proto.SerializeToString()


def _fold(model: object) -> None:
    """Compute what depends on no input, the matrices of smoothing for example: some runtimes lack operators for it."""
    from onnxscript.optimizer import fold_constants

    def small(node: object) -> bool | None:
        return False if node.op_type == "Cast" and any(_is_half(one) for one in node.inputs) else None

    fold_constants(model, input_size_limit=_FOLDED, output_size_limit=_FOLDED, should_fold=small)


def _is_half(value: object) -> bool:
    import onnx_ir

    return value is not None and value.dtype == onnx_ir.DataType.FLOAT16
