"""What every way to teach has in common: features of pictures in, a head as an ONNX graph out.

`fit(features, config)` looks at the features of good parts, and of labelled defects where a
family can use them, and returns a graph from the features of one picture (`taught`,
1 x channels x 32 x 32) to `score` and `map`. The same graph judges held-out pictures while
teaching and every part on the line, so there is no second way to compute a score.

A score is larger for a part less like a good one, and never negative; nor is a map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
from onnx import TensorProto, compose, helper

from qcmodels.bank import FEATURES, GRID, GraphBuilder

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

TAUGHT: Final = "taught"
SCORE: Final = "score"
HEAT: Final = "map"
CELLS: Final = GRID * GRID

_SMOOTHING: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Features:
    """What is known of pictures to teach from, each as channels x 32 x 32."""

    good: NDArray[np.float32]
    defects: NDArray[np.float32]

    @property
    def channels(self) -> int:
        """How many values describe a cell."""
        return int(self.good.shape[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class FitConfig:
    """What a family is told beside the features: the seed of its random choices.

    `threads` is how many models may be taught at once, where parts are held out in folds.
    """

    seed: int
    threads: int = 1


class Fit(Protocol):
    """One way to teach."""

    def __call__(self, features: Features, config: FitConfig) -> onnx.ModelProto:
        """Return a head taught on `features`."""
        ...


def add_cells(graph: GraphBuilder, kept: NDArray[np.int64]) -> str:
    """Add the way from features to cells x kept channels."""
    chosen = graph.add("Gather", TAUGHT, graph.constant(kept), axis=1)
    shape = graph.constant(np.array([kept.size, CELLS], np.int64))
    return graph.add("Transpose", graph.add("Reshape", chosen, shape), perm=[1, 0])


def add_half(graph: GraphBuilder, value: NDArray[np.float32]) -> str:
    """Add a constant kept in 16 bits; the runtime widens it once, when it loads the model."""
    half = graph.constant(value.astype(np.float16))
    return graph.add("Cast", half, to=TensorProto.FLOAT)


def add_smooth(graph: GraphBuilder, cells: str) -> str:
    """Add the mean over each cell and its neighbours; a vector of cells in and out."""
    grid = graph.add("Reshape", cells, graph.constant(np.array([1, 1, GRID, GRID], np.int64)))
    smooth = graph.add(
        "AveragePool",
        grid,
        kernel_shape=[_SMOOTHING] * 2,
        pads=[_SMOOTHING // 2] * 4,
        count_include_pad=0,
    )
    return graph.add("Reshape", smooth, graph.constant(np.array([CELLS], np.int64)))


def add_largest(graph: GraphBuilder, cells: str, count: int, *, output: str | None = None) -> str:
    """Add the mean of the largest few, so neither one noisy cell nor one missed decides."""
    largest, _ = graph.top(cells, count)
    return graph.add("ReduceMean", largest, keepdims=0, output=output)


def close_head(graph: GraphBuilder, heat: str, *, channels: int) -> onnx.ModelProto:
    """Return the graph as a head; `SCORE` is in it by that name, `heat` are its cells."""
    graph.add("Reshape", heat, graph.constant(np.array([GRID, GRID], np.int64)), output=HEAT)
    return graph.model(
        "head",
        inputs=[
            helper.make_tensor_value_info(TAUGHT, TensorProto.FLOAT, [1, channels, GRID, GRID])
        ],
        outputs=[
            helper.make_tensor_value_info(SCORE, TensorProto.FLOAT, []),
            helper.make_tensor_value_info(HEAT, TensorProto.FLOAT, [GRID, GRID]),
        ],
    )


def compose_model(source: onnx.ModelProto, head: onnx.ModelProto) -> onnx.ModelProto:
    """Return one graph from picture to score and map."""
    return compose.merge_models(source, head, io_map=[(FEATURES, TAUGHT)])
