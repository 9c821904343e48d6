"""The family `memory`: cells of good parts, remembered; a cell like none of them is odd.

Features are compared wherever they were seen, so a part may move and turn. What is kept
is a coreset: cells picked one by one, each the farthest from all picked before, so rare
but good places are in it. The map is the distance to the nearest of them, the score the
mean of its largest few cells after a light smoothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from qcmodels.bank import GraphBuilder
from qcmodels.families.contract import (
    CELLS,
    SCORE,
    add_cells,
    add_half,
    add_largest,
    add_smooth,
    close_head,
)
from qcnode.errors import DatasetError

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    from qcmodels.families.contract import Features, FitConfig

_REMEMBERED: Final = 1_500
_LOOKED_AT: Final = 20_000
"""Cells the coreset is picked from; a search over all would take minutes, for nothing measured."""
_LARGEST: Final = 5
_FLAT: Final = 1e-4


def fit(features: Features, config: FitConfig) -> onnx.ModelProto:
    """Return a head that remembers good cells; defects are not looked at."""
    count, channels = features.good.shape[:2]
    random = np.random.default_rng(config.seed)
    every = features.good.reshape(count, channels, CELLS)
    spread = every.std(axis=(0, 2), dtype=np.float64)
    kept = np.flatnonzero(spread > _FLAT)
    if kept.size == 0:
        raise DatasetError("all good pictures are one even grey: teach from pictures of parts")
    drawn = random.choice(count * CELLS, min(_LOOKED_AT, count * CELLS), replace=False)
    cells = every[drawn // CELLS, :, drawn % CELLS][:, kept]
    origin = every.mean(axis=(0, 2), dtype=np.float64)[kept].astype(np.float32)
    scale = (1.0 / spread[kept] / np.sqrt(kept.size)).astype(np.float32)
    bank = _pick((cells - origin) * scale, first=int(random.integers(len(cells))))

    graph = GraphBuilder(prefix="memory")
    centred = graph.add("Sub", add_cells(graph, kept.astype(np.int64)), graph.constant(origin))
    scaled = graph.add("Mul", centred, graph.constant(scale))
    # What is remembered is what 16 bits hold, in both terms of the distance.
    bank = bank.astype(np.float16).astype(np.float32)
    product = graph.add("MatMul", scaled, add_half(graph, -2.0 * bank.T))
    lengths = graph.constant((bank**2).sum(axis=1))
    along = graph.constant(np.array([1], np.int64))
    nearest = graph.add("ReduceMin", graph.add("Add", product, lengths), along, keepdims=0)
    square = graph.add("Add", nearest, graph.add("ReduceSumSquare", scaled, along, keepdims=0))
    smooth = add_smooth(graph, graph.add("Sqrt", graph.add("Relu", square)))
    add_largest(graph, smooth, _LARGEST, output=SCORE)
    return close_head(graph, smooth, channels=channels)


def _pick(cells: NDArray[np.float32], *, first: int) -> NDArray[np.float32]:
    """Return a few of `cells` that lie close to all of them (greedy k-centre)."""
    lengths = (cells**2).sum(axis=1)
    chosen = [first]
    nearest = np.full(len(cells), np.inf, np.float32)
    for _ in range(min(_REMEMBERED, len(cells)) - 1):
        last = chosen[-1]
        away = lengths + lengths[last] - 2.0 * (cells @ cells[last])
        np.minimum(nearest, away, out=nearest)
        chosen.append(int(nearest.argmax()))
    return cells[chosen]
