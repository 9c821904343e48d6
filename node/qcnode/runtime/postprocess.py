"""What a foreign graph's answer means, and the nodes that make score and map of it.

The same meaning is read twice: by `read` from an answer at hand, when golden pictures are
compared, and by `conclude` as nodes of the released graph. A score here is higher the less
a part is like a good one, whatever the training side calls high.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from onnx import TensorProto

from qcnode.runtime.graph import HEAT, SCORE, Nodes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from qcnode.runtime.preprocess import Preparation

GRID: Final = 32
_MAP_MOST: Final = 64
_BOXES_MOST: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """How the training side's number comes out of the answer.

    `kind` says what is there: class scores, an anomaly score (with a map), a map alone, or
    boxes: `yolo` as channels, `ends` as finished boxes, `detr` with logits beside them.
    `places` are the classes whose scores count, summed where they share one softmax.
    """

    kind: Literal["class", "score", "map", "yolo", "ends", "detr"]
    score: str
    shape: tuple[int, ...]
    map: str | None = None
    map_shape: tuple[int, ...] = ()
    activation: Literal["none", "softmax", "sigmoid"] = "none"
    places: tuple[int, ...] = ()
    higher: Literal["defective", "good"] = "defective"
    bounded: bool = False
    """Whether the number is a share of 1, and so turned round by taking it from 1."""

    def words(self) -> str:
        """Say it in one line, for the record."""
        which = f" of {list(self.places)}" if self.places else ""
        how = "" if self.activation == "none" else f"{self.activation} "
        return f"{how}{self.kind}{which} from {self.score}; higher is {self.higher}"

    def turned(self, value: float) -> float:
        """Return our number for the training side's, and the other way round."""
        if self.higher == "defective":
            return value
        return (1.0 if self.bounded else 0.0) - value

    @property
    def heat(self) -> tuple[int, int]:
        """Return the grid of the map."""
        if self.kind == "class":
            return (1, 1)
        if self.kind in ("score", "map"):
            if not self.map_shape:
                return (1, 1)
            rows, columns = self.map_shape[-2:]
            step = _step(rows, columns)
            return rows // step, columns // step
        return (GRID, GRID)

    def read(self, answer: Mapping[str, NDArray[Any]]) -> float:
        """Return the training side's number, as it calls it, from one answer."""
        value = np.asarray(answer[self.score], np.float64)
        if self.kind == "score":
            return float(value.reshape(-1)[0])
        if self.kind == "map":
            return float(value.max())
        if self.kind == "class":
            flat = value.reshape(-1)
            return float(_activate(flat, self.activation)[list(self.places)].sum())
        if self.kind == "yolo":
            return float(value[0][[4 + place for place in self.places]].max())
        if self.kind == "ends":
            return float(value[0][:, 4].max())
        return float(_activate(value[0][:, list(self.places)], "sigmoid").max())


def _activate(value: NDArray[np.float64], how: str) -> NDArray[np.float64]:
    if how == "softmax":
        powers = np.exp(value - value.max())
        return np.asarray(powers / powers.sum())
    if how == "sigmoid":
        return np.asarray(0.5 * (1.0 + np.tanh(value / 2.0)))  # Overflows nowhere.
    return value


def conclude(meaning: Meaning, how: Preparation, size: tuple[int, int]) -> Nodes:
    """Return nodes from the foreign outputs to the node's score and map."""
    nodes = Nodes("behind")
    value = nodes.add("Cast", meaning.score, to=TensorProto.FLOAT)
    if meaning.kind == "class":
        score = _class_score(nodes, value, meaning)
        _give(nodes, meaning, score, nodes.add("Reshape", score, nodes.ints(1, 1)))
    elif meaning.kind in ("score", "map"):
        first = nodes.cut(nodes.add("Reshape", value, nodes.ints(-1)), 0, 1, axis=0)
        grid = nodes.add("Reshape", first, nodes.ints(1, 1))
        score = first
        if meaning.map is not None:
            grid, peak = _pooled(
                nodes, nodes.add("Cast", meaning.map, to=TensorProto.FLOAT), meaning
            )
            score = peak if meaning.kind == "map" else first
        _give(nodes, meaning, score, grid)
    else:
        edges, confidence = _boxes(nodes, value, meaning)
        score = nodes.add("ReduceMax", confidence, keepdims=0)
        _give(
            nodes,
            meaning,
            score,
            _painted(nodes, edges, confidence, _edges_of_cells(meaning, how, size)),
        )
    return nodes


def _give(nodes: Nodes, meaning: Meaning, score: str, grid: str) -> None:
    """Turn both round where the training side calls good parts high."""
    for value, shape, name in ((score, (), SCORE), (grid, meaning.heat, HEAT)):
        shaped = nodes.add("Reshape", value, nodes.constant(np.array(shape, np.int64)))
        if meaning.higher == "good":
            whole = nodes.constant(meaning.turned(0.0), np.float32)
            nodes.add("Sub", whole, shaped, output=name)
        else:
            nodes.add("Identity", shaped, output=name)


def _class_score(nodes: Nodes, value: str, meaning: Meaning) -> str:
    flat = nodes.add("Reshape", value, nodes.ints(-1))
    if meaning.activation == "softmax":
        flat = nodes.add("Softmax", flat, axis=0)
    elif meaning.activation == "sigmoid":
        flat = nodes.add("Sigmoid", flat)
    return nodes.add(
        "ReduceSum", nodes.add("Gather", flat, nodes.ints(*meaning.places)), keepdims=1
    )


def _step(rows: int, columns: int) -> int:
    return max(1, -(-max(rows, columns) // _MAP_MOST))


def _pooled(nodes: Nodes, value: str, meaning: Meaning) -> tuple[str, str]:
    rows, columns = meaning.map_shape[-2:]
    square = nodes.add("Reshape", value, nodes.ints(1, 1, rows, columns))
    peak = nodes.add("ReduceMax", square, keepdims=0)
    step = _step(rows, columns)
    return nodes.add("MaxPool", square, kernel_shape=[step] * 2, strides=[step] * 2), peak


def _boxes(nodes: Nodes, value: str, meaning: Meaning) -> tuple[list[str], str]:
    """Return left, top, right and bottom of the best boxes, and how sure each is."""
    places = nodes.ints(*(4 + place for place in meaning.places))
    if meaning.kind == "yolo":
        rows = nodes.add("Transpose", value, perm=[0, 2, 1])
        rows = nodes.add("Reshape", rows, nodes.ints(meaning.shape[2], meaning.shape[1]))
        classes = nodes.add("Gather", rows, places, axis=1)
        sure = nodes.add("ReduceMax", classes, nodes.ints(1), keepdims=0)
    elif meaning.kind == "ends":
        rows = nodes.add("Reshape", value, nodes.ints(meaning.shape[1], meaning.shape[2]))
        sure = nodes.add("Reshape", nodes.cut(rows, 4, 5, axis=1), nodes.ints(-1))
    else:
        logits = nodes.add("Reshape", value, nodes.ints(meaning.shape[1], meaning.shape[2]))
        picked = nodes.add("Gather", logits, nodes.ints(*meaning.places), axis=1)
        sure = nodes.add("ReduceMax", nodes.add("Sigmoid", picked), nodes.ints(1), keepdims=0)
        boxes = nodes.add("Cast", meaning.map or "", to=TensorProto.FLOAT)
        rows = nodes.add("Reshape", boxes, nodes.ints(meaning.shape[1], 4))
    count = min(_BOXES_MOST, meaning.shape[2] if meaning.kind == "yolo" else meaning.shape[1])
    best = nodes.add_many("TopK", [sure, nodes.ints(count)], ["qcnode.sure", "qcnode.which"])
    rows = nodes.add("Gather", rows, best[1], axis=0)
    first, second, third, fourth = (
        nodes.add("Reshape", nodes.cut(rows, at, at + 1, axis=1), nodes.ints(-1, 1))
        for at in range(4)
    )
    if meaning.kind == "ends":
        return [first, second, third, fourth], best[0]
    half = nodes.constant(0.5, np.float32)
    wide, high = nodes.add("Mul", third, half), nodes.add("Mul", fourth, half)
    edges = [
        nodes.add("Sub", first, wide),
        nodes.add("Sub", second, high),
        nodes.add("Add", first, wide),
        nodes.add("Add", second, high),
    ]
    return edges, best[0]


def _edges_of_cells(
    meaning: Meaning, how: Preparation, size: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return where the cells of the picture end in what the graph sees: across and down."""
    rows, columns = how.inner(size)
    down, along = how.offset(size)
    across = np.linspace(0, columns, GRID + 1) + along
    upright = np.linspace(0, rows, GRID + 1) + down
    if meaning.kind == "detr":  # Its boxes are shares of what the graph saw.
        across, upright = across / how.width, upright / how.height
    return across.astype(np.float32), upright.astype(np.float32)


def _painted(
    nodes: Nodes,
    edges: list[str],
    sure: str,
    cells: tuple[NDArray[np.float32], NDArray[np.float32]],
) -> str:
    """Return the grid over the whole picture, each cell as sure as the best box that meets it."""
    met = []
    for begins, ends, ticks in ((edges[0], edges[2], cells[0]), (edges[1], edges[3], cells[1])):
        before = nodes.add("Less", begins, nodes.constant(ticks[np.newaxis, 1:]))
        beyond = nodes.add("Greater", ends, nodes.constant(ticks[np.newaxis, :-1]))
        met.append(nodes.add("Cast", nodes.add("And", before, beyond), to=TensorProto.FLOAT))
    in_columns = nodes.add("Unsqueeze", met[0], nodes.ints(1))
    in_rows = nodes.add("Unsqueeze", met[1], nodes.ints(2))
    weights = nodes.add("Reshape", sure, nodes.ints(-1, 1, 1))
    painted = nodes.add("Mul", nodes.add("Mul", in_rows, in_columns), weights)
    return nodes.add("ReduceMax", painted, nodes.ints(0), keepdims=0)
