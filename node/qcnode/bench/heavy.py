"""A model that takes its time: plain convolutions with made-up weights, for measuring alone.

It stands for a network of a size people deploy, where the model and not the picture's
decoding is the slow part. Its answers mean nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto, helper

from qcmodels.bank import GRID, IMAGE, SIZE, GraphBuilder
from qcnode.domain import Prediction
from qcnode.picture import seen_at, seen_of
from qcnode.runtime.onnx import open_session

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcnode.domain import Frame

_CHANNELS = (32, 64, 128, 256)
_CONVOLUTIONS_EACH = 3


class HeavyModel:
    """Answers like a model, and costs like one."""

    version = "heavy@bench"
    side = SIZE

    def __init__(self) -> None:
        self._session = open_session(_graph())

    def predict(self, frame: Frame) -> Prediction:
        """Return a score that means nothing."""
        score, heat = self.score(seen_at(seen_of(frame, SIZE), SIZE))
        return Prediction(score=score, model=self.version, heat=heat)

    def score(self, pixels: NDArray[np.uint8]) -> tuple[float, NDArray[np.float32]]:
        """Run the graph, and nothing else."""
        score, heat = self._session.run(["score", "map"], {IMAGE: pixels})
        return float(score), heat


def _graph() -> bytes:
    rng = np.random.default_rng(1)
    graph = GraphBuilder(prefix="heavy")
    upright = graph.add("Transpose", IMAGE, perm=[2, 0, 1])
    batch = graph.add("Unsqueeze", upright, graph.constant(np.array([0], np.int64)))
    pixels = graph.add("Cast", batch, to=TensorProto.FLOAT)
    sizes = graph.constant(np.array([1, 3, SIZE, SIZE], np.int64))
    value = graph.add("Resize", pixels, "", "", sizes, mode="linear", antialias=1)
    before = 3
    for channels in _CHANNELS:
        for number in range(_CONVOLUTIONS_EACH):
            spread = np.sqrt(2 / (9 * before))
            weights = rng.normal(0.0, spread, (channels, before, 3, 3)).astype(np.float32)
            step = 2 if number == 0 else 1
            value = graph.add(
                "Conv", value, graph.constant(weights), strides=[step] * 2, pads=[1] * 4
            )
            value = graph.add("Relu", value)
            before = channels
    graph.add("ReduceMax", graph.add("ReduceMean", value, keepdims=0), keepdims=0, output="score")
    mean = graph.add("ReduceMean", value, graph.constant(np.array([1], np.int64)), keepdims=1)
    grid = graph.constant(np.array([1, 1, GRID, GRID], np.int64))
    large = graph.add("Resize", mean, "", "", grid, mode="linear")
    shape = graph.constant(np.array([GRID, GRID], np.int64))
    graph.add("Reshape", large, shape, output="map")
    model = graph.model(
        "heavy",
        inputs=[helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, ["height", "width", 3])],
        outputs=[
            helper.make_tensor_value_info("score", TensorProto.FLOAT, []),
            helper.make_tensor_value_info("map", TensorProto.FLOAT, [GRID, GRID]),
        ],
    )
    data: bytes = model.SerializeToString()
    return data
