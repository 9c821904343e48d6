"""Nodes put before and behind a foreign graph, so that together they keep the node's contract.

Names begin with a mark of our own, so none can be taken for one of the foreign graph's.
Everything is written for opset 18; an older graph is brought up to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, version_converter

from qcnode.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

OPSET: Final = 18
IMAGE: Final = "qcnode.image"
SCORE: Final = "qcnode.score"
HEAT: Final = "qcnode.heat"
_MARK: Final = "qcnode."


class Nodes:
    """Nodes and constants in the making."""

    def __init__(self, part: str) -> None:
        self._part = part
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Add a node and return the name of its one output."""
        return self.add_many(kind, inputs, [output or self._new()], **attributes)[0]

    def add_many(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any
    ) -> list[str]:
        """Add a node with several outputs and return their names."""
        self.nodes.append(helper.make_node(kind, list(inputs), list(outputs), **attributes))
        return list(outputs)

    def constant(self, value: Any, dtype: Any = None) -> str:
        """Add a constant and return its name."""
        array: NDArray[Any] = np.asarray(value, dtype)
        self.constants.append(numpy_helper.from_array(array, f"{self._new()}c"))
        return self.constants[-1].name

    def ints(self, *values: int) -> str:
        """Add a list of whole numbers and return its name."""
        return self.constant(values, np.int64)

    def cut(self, value: str, begin: int, end: int, *, axis: int) -> str:
        """Return a stretch of one axis."""
        return self.add("Slice", value, self.ints(begin), self.ints(end), self.ints(axis))

    def _new(self) -> str:
        return f"{_MARK}{self._part}.{len(self.nodes)}.{len(self.constants)}"


def modern(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model in opset 18 or what it has beyond; raises `ModelError`."""
    versions = [one.version for one in model.opset_import if one.domain in ("", "ai.onnx")]
    if not versions or versions[0] >= OPSET:
        return model
    try:
        return version_converter.convert_version(model, OPSET)
    except (RuntimeError, ValueError) as error:
        words = " ".join(str(error).split())[:120]
        raise ModelError(
            f"opset {versions[0]} cannot be brought to {OPSET} ({words}): export it with"
            f" opset {OPSET}"
        ) from error


def around(
    model: onnx.ModelProto,
    before: Nodes,
    behind: Nodes,
    *,
    feeds: str,
    size: tuple[int, int],
    heat: tuple[int, int],
) -> bytes:
    """Return one graph from picture to score and map; `feeds` is the output of `before`."""
    inner = model.graph
    taken = {name for node in inner.node for name in (*node.input, *node.output)}
    if any(name.startswith(_MARK) for name in taken):
        raise ModelError(f"the graph uses names that begin with {_MARK!r}: import the original")
    entry = next(item.name for item in inner.input if item.name not in _constants_of(inner))
    nodes = [
        *before.nodes,
        helper.make_node("Identity", [feeds], [entry]),
        *inner.node,
        *behind.nodes,
    ]
    graph = helper.make_graph(
        nodes,
        "imported",
        [helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, [*size, 3])],
        [
            helper.make_tensor_value_info(SCORE, TensorProto.FLOAT, []),
            helper.make_tensor_value_info(HEAT, TensorProto.FLOAT, list(heat)),
        ],
        [*before.constants, *inner.initializer, *behind.constants],
    )
    graph.sparse_initializer.extend(inner.sparse_initializer)
    whole = helper.make_model(
        graph,
        opset_imports=list(model.opset_import),
        functions=list(model.functions),
        ir_version=max(model.ir_version, 8),
        producer_name="qcnode import",
    )
    return bytes(whole.SerializeToString())


def alone(nodes: Nodes, feeds: str, *, size: tuple[int, int]) -> bytes:
    """Return a graph of the nodes before a foreign one, to see what they make of a picture."""
    graph = helper.make_graph(
        [*nodes.nodes, helper.make_node("Identity", [feeds], ["prepared"])],
        "prepared",
        [helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, [*size, 3])],
        [onnx.ValueInfoProto(name="prepared")],
        nodes.constants,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    return bytes(made.SerializeToString())


def _constants_of(graph: onnx.GraphProto) -> set[str]:
    return {one.name for one in graph.initializer}
