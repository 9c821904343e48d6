"""The filter bank: a fixed description of every place of a picture, as an ONNX graph.

Nothing in it is learned. At four scales it measures how strongly lines (four directions)
and edges (two) stand out, and beside that brightness and colour. Everything is averaged over
cells of a 32 x 32 grid that overlap by half, so a part may lie a few pixels off. The square
root between filter and statistics makes strengths near normal: without it, a few strong
edges rule the variance; with a logarithm, noise on empty ground does.

The same graph, byte for byte, describes pictures when teaching and on the line.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

IMAGE: Final = "image"
FEATURES: Final = "features"
SIZE: Final = 256
GRID: Final = 32
LEVELS: Final = 4
CHROMA_LEVELS: Final = 2
OPSET: Final = 18
IR_VERSION: Final = 8

_LINES: Final = 4
_EDGES: Final = 2
_FLOOR: Final = 0.005
"""Keeps the square root tame where there is nothing to see; a tenth of a weak scratch."""

# Brightness, and two differences of colour; all in shares of full scale.
_COLOUR: Final = np.array(
    [[0.299, 0.587, 0.114], [0.5, -0.5, 0.0], [-0.25, -0.25, 0.5]], np.float32
)


def add_bank(graph: GraphBuilder, sized: str) -> str:
    """Add the way from pixels of 0 to 255, SIZE x SIZE, to the bank's features."""
    colour = graph.add("Conv", sized, graph.constant(_COLOUR.reshape(3, 3, 1, 1) / np.float32(255)))
    light, chroma = graph.split(colour, 1, 2)

    features = [_pool(graph, colour, level=0)]
    kernels = np.concatenate([_oriented(_LINES, 7, _line), _oriented(_EDGES, 7, _edge)])
    for level in range(LEVELS):
        if level > 0:
            light, chroma = _halve(graph, light), _halve(graph, chroma)
        features.append(_strength(graph, light, kernels, level=level, groups=1))
        if level < CHROMA_LEVELS:
            edges = np.tile(_oriented(_EDGES, 5, _edge), (2, 1, 1, 1))
            features.append(_strength(graph, chroma, edges, level=level, groups=2))
    return graph.add("Concat", *features, axis=1)


def add_sized(graph: GraphBuilder) -> str:
    """Add the way from the picture to 1 x 3 x SIZE x SIZE pixels of 0 to 255."""
    upright = graph.add("Transpose", IMAGE, perm=[2, 0, 1])
    batch = graph.add("Unsqueeze", upright, graph.constant(np.array([0], np.int64)))
    pixels = graph.add("Cast", batch, to=TensorProto.FLOAT)
    return graph.add(
        "Resize",
        pixels,
        "",
        "",
        graph.constant(np.array([1, 3, SIZE, SIZE], np.int64)),
        mode="linear",
        coordinate_transformation_mode="half_pixel",
        antialias=1,
    )


@dataclass(slots=True)
class GraphBuilder:
    """Nodes and constants of a graph in the making; names are given in order."""

    prefix: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def add(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Add a node and return the name of its one output."""
        name = output or f"{self.prefix}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def split(self, value: str, *sizes: int) -> list[str]:
        """Cut the channels of `value` into parts of these sizes."""
        names = [f"{self.prefix}_{len(self.nodes)}_{index}" for index in range(len(sizes))]
        lengths = self.constant(np.array(sizes, np.int64))
        self.nodes.append(helper.make_node("Split", [value, lengths], names, axis=1))
        return names

    def top(self, value: str, count: int, *, largest: int = 1) -> tuple[str, str]:
        """Add the `count` largest or smallest along the first axis, and where they are."""
        names = [f"{self.prefix}_{len(self.nodes)}_{index}" for index in range(2)]
        few = self.constant(np.array([count], np.int64))
        self.nodes.append(
            helper.make_node("TopK", [value, few], names, axis=0, largest=largest, sorted=1)
        )
        return names[0], names[1]

    def constant(self, value: NDArray[Any]) -> str:
        """Add a constant and return its name."""
        name = f"{self.prefix}_constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def model(
        self,
        name: str,
        *,
        inputs: list[onnx.ValueInfoProto],
        outputs: list[onnx.ValueInfoProto],
    ) -> onnx.ModelProto:
        """Return what was added as a checked model."""
        graph = helper.make_graph(self.nodes, name, inputs, outputs, self.constants)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="qcmodels",
        )
        onnx.checker.check_model(model)
        return model


def _strength(
    graph: GraphBuilder, value: str, kernels: NDArray[np.float32], *, level: int, groups: int
) -> str:
    """Return how strongly each filter answers, whatever the sign, cell by cell."""
    rim = kernels.shape[-1] // 2
    pads = graph.constant(np.array([0, 0, rim, rim, 0, 0, rim, rim], np.int64))
    framed = graph.add("Pad", value, pads, mode="reflect")
    answer = graph.add("Conv", framed, graph.constant(kernels), group=groups)
    mean = _pool(graph, graph.add("Abs", answer), level=level)
    return graph.add("Sqrt", graph.add("Add", mean, graph.constant(np.array([_FLOOR], np.float32))))


def _pool(graph: GraphBuilder, value: str, *, level: int) -> str:
    """Average over the cells of the grid, each reaching half a cell into its neighbours."""
    step = SIZE // 2**level // GRID
    if step == 1:
        return graph.add("AveragePool", value, kernel_shape=[3, 3], pads=[1] * 4)
    return graph.add(
        "AveragePool",
        value,
        kernel_shape=[2 * step] * 2,
        strides=[step] * 2,
        pads=[step // 2] * 4,
    )


def _halve(graph: GraphBuilder, value: str) -> str:
    return graph.add("AveragePool", value, kernel_shape=[2, 2], strides=[2, 2])


_SIGMA: Final = 1.2
_LENGTH: Final = 1.5
"""How much longer a filter is than wide: lines are found, corners are not lost."""


def _line(across: NDArray[np.float64]) -> NDArray[np.float64]:
    return across**2 / _SIGMA**2 - 1.0


def _edge(across: NDArray[np.float64]) -> NDArray[np.float64]:
    return -across


def _oriented(
    count: int, size: int, profile: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> NDArray[np.float32]:
    """Return derivatives of a Gaussian in `count` directions: no answer to even light."""
    reach = (size - 1) / 2
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    kernels = []
    for index in range(count):
        angle = np.pi * index / count
        across = x * np.cos(angle) + y * np.sin(angle)
        along = -x * np.sin(angle) + y * np.cos(angle)
        bell = np.exp(-(across**2) / 2 / _SIGMA**2 - along**2 / 2 / (_SIGMA * _LENGTH) ** 2)
        kernel = profile(across) * bell
        kernel -= kernel.mean()
        kernels.append(kernel / np.abs(kernel).sum())
    return np.array(kernels, np.float32)[:, np.newaxis]
