"""The family `gaussian`: what every place of a good part looks like, and how much it varies.

At each cell of the grid the features of good parts are one Gaussian. A part's anomaly
map is its distance from that (Mahalanobis, in units where a good part is near 1); its
score is the mean of the largest few cells after a light smoothing, so that neither one noisy
cell nor one cell missed decides. It suits parts that arrive aligned to a few pixels, and
even texture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from onnx import TensorProto, compose, helper

from qcmodels.bank import FEATURES, GRID, GraphBuilder
from qcnode.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx
    from numpy.typing import NDArray

FAMILY: Final = "gaussian"
SCORE: Final = "score"
HEAT: Final = "map"

_CELLS: Final = GRID * GRID
_LARGEST: Final = 5
_SMOOTHING: Final = 3
_SHARED: Final = 0.1
"""Share of the mean covariance in every cell's: a cell alone has too few pictures."""
_RIDGE: Final = 0.02
"""Variance added to every feature, in units of its mean variance over the picture."""
_FLAT: Final = 1e-4
"""A feature that varies less than this says nothing (colour, in grey pictures)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gaussians:
    """One Gaussian per cell over the features that vary at all.

    `whiten[i]` takes a deviation at cell i to one whose squares sum to the distance.
    """

    kept: NDArray[np.int64]
    mean: NDArray[np.float32]
    whiten: NDArray[np.float32]


def fit(features: Iterable[NDArray[np.float32]]) -> Gaussians:
    """Return the statistics of good parts; each picture is looked at once and let go."""
    count = 0
    total = products = np.zeros(0)
    for picture in features:
        cells = picture.reshape(-1, _CELLS).T.astype(np.float64)
        if count == 0:
            total = np.zeros_like(cells)
            products = np.zeros((_CELLS, cells.shape[1], cells.shape[1]))
            # Sums of squares about a typical value keep their digits.
            origin = cells
        deviation = cells - origin
        total += deviation
        products += deviation[:, :, np.newaxis] * deviation[:, np.newaxis, :]
        count += 1
    if count < 2:  # noqa: PLR2004  # one picture has no spread
        raise DatasetError(f"{count} pictures to teach from, at least 2 are needed: add good parts")
    shift = total / count
    covariance = products / count - shift[:, :, np.newaxis] * shift[:, np.newaxis, :]
    spread = np.sqrt(np.maximum(np.einsum("icc->ic", covariance).mean(axis=0), 0.0))
    kept = np.flatnonzero(spread > _FLAT)
    if kept.size == 0:
        raise DatasetError("all good pictures are identical: teach from pictures of many parts")
    scale = spread[kept]
    scaled = covariance[:, kept[:, np.newaxis], kept] / np.outer(scale, scale)
    shrunk = (1.0 - _SHARED) * scaled + _SHARED * scaled.mean(axis=0)
    shrunk += _RIDGE * np.eye(kept.size)
    # With inv(S) = L L', the distance d' inv(S) d is the squared length of d' L.
    root = np.linalg.cholesky(np.linalg.inv(shrunk))
    return Gaussians(
        kept=kept.astype(np.int64),
        mean=(origin + shift)[:, kept].astype(np.float32),
        whiten=(root / scale[:, np.newaxis] / np.sqrt(kept.size)).astype(np.float32),
    )


def compose_model(bank: onnx.ModelProto, gaussians: Gaussians) -> onnx.ModelProto:
    """Return one graph from picture to score and anomaly map, with the bank inside."""
    graph = GraphBuilder(prefix="gaussian")
    channels = gaussians.kept.size
    kept = graph.add("Gather", "taught", graph.constant(gaussians.kept), axis=1)
    shape = graph.constant(np.array([channels, _CELLS], np.int64))
    cells = graph.add("Transpose", graph.add("Reshape", kept, shape), perm=[1, 0])
    deviation = graph.add("Sub", cells, graph.constant(gaussians.mean))
    rows = graph.add("Unsqueeze", deviation, graph.constant(np.array([1], np.int64)))
    white = graph.add("MatMul", rows, graph.constant(gaussians.whiten))
    squares = graph.add("ReduceSumSquare", white, graph.constant(np.array([1, 2])), keepdims=0)
    grid = graph.constant(np.array([1, 1, GRID, GRID], np.int64))
    distance = graph.add("Reshape", graph.add("Sqrt", squares), grid)
    smooth = graph.add(
        "AveragePool",
        distance,
        kernel_shape=[_SMOOTHING] * 2,
        pads=[_SMOOTHING // 2] * 4,
        count_include_pad=0,
    )
    graph.add("Reshape", smooth, graph.constant(np.array([GRID, GRID], np.int64)), output=HEAT)
    flat = graph.add("Reshape", smooth, graph.constant(np.array([_CELLS], np.int64)))
    few = graph.constant(np.array([_LARGEST], np.int64))
    graph.nodes.append(helper.make_node("TopK", [flat, few], ["largest", "places"]))
    graph.add("ReduceMean", "largest", keepdims=0, output=SCORE)
    head = graph.model(
        FAMILY,
        inputs=[helper.make_tensor_value_info("taught", TensorProto.FLOAT, [1, None, GRID, GRID])],
        outputs=[
            helper.make_tensor_value_info(SCORE, TensorProto.FLOAT, []),
            helper.make_tensor_value_info(HEAT, TensorProto.FLOAT, [GRID, GRID]),
        ],
    )
    return compose.merge_models(bank, head, io_map=[(FEATURES, "taught")])
