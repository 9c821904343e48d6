"""A small convolutional net of our own, as nodes of an ONNX graph.

Plain 3 x 3 convolutions down to an eighth of the picture. Its features are those of two
stages on the same 32 x 32 grid as the bank's. `qcmodels.pretrain` makes its weights from
pictures drawn by formulas. None are shipped: on no recorded set did they beat the bank
(docs/models.md has the figures, decision 0046 the reasons).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from onnx import TensorProto

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from qcmodels.bank import GraphBuilder

WIDTHS: Final = (24, 40, 40, 72, 72, 72)
STRIDES: Final = (2, 2, 1, 2, 1, 1)
EARLY: Final = 2
"""The layer whose answer, averaged two by two, stands beside the last one's."""


def load_weights(path: Path) -> dict[str, NDArray[np.float16]]:
    """Return weights that `qcmodels.pretrain` wrote."""
    with np.load(path, allow_pickle=False) as weights:
        return {name: weights[name] for name in weights.files}


def add_backbone(graph: GraphBuilder, sized: str, weights: dict[str, NDArray[np.float16]]) -> str:
    """Add the way from pixels of 0 to 255, SIZE x SIZE, to the net's features."""
    value = graph.add("Mul", sized, graph.constant(np.array(1 / 127.5, np.float32)))
    value = graph.add("Sub", value, graph.constant(np.array(1.0, np.float32)))
    early = ""
    for layer, stride in enumerate(STRIDES):
        kernel, offset = (
            graph.add("Cast", graph.constant(weights[f"{name}{layer}"]), to=TensorProto.FLOAT)
            for name in ("kernel", "offset")
        )
        value = graph.add("Conv", value, kernel, offset, strides=[stride] * 2, pads=[1] * 4)
        value = graph.add("Relu", value)
        if layer == EARLY:
            early = graph.add("AveragePool", value, kernel_shape=[2, 2], strides=[2, 2])
    return graph.add("Concat", early, value, axis=1)
