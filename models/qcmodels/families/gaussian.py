"""The family `gaussian`: what every place of a good part looks like, and how much it varies.

At each cell of the grid the features of good parts are one Gaussian. A part's anomaly
map is its distance from that (Mahalanobis, in units where a good part is near 1); its
score is the mean of the largest few cells. It suits parts that arrive aligned to a few
pixels, and even texture.

A full covariance per cell would be most of a model's bytes. Here one whitening serves all
cells, and each cell keeps the few directions in which it differs most from the rest of
the picture, with one variance for all others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from qcmodels.bank import GraphBuilder
from qcmodels.families.contract import (
    CELLS,
    SCORE,
    add_cells,
    add_half,
    add_largest,
    close_head,
)
from qcnode.errors import DatasetError

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    from qcmodels.families.contract import Features, FitConfig

LARGEST: Final = 5
_RANK: Final = 12
_SHARED: Final = 0.07
"""Share of the mean covariance in every cell's: a cell alone has too few pictures."""
_RIDGE: Final = 0.02
"""Variance added to every feature, in units of its mean variance over the picture."""
_FLAT: Final = 1e-4
"""A feature that varies less than this says nothing (colour, in grey pictures)."""
_WIDEST: Final = 48
"""Directions kept of more features than that: those in which good parts vary most."""
_AT_ONCE: Final = 128
"""Cells worked on together: bounds the memory, whatever the number of pictures."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gaussians:
    """One Gaussian per cell over the features that vary at all.

    With d = (x - origin) @ basis - mean and y = d @ whiten, the squared distance at cell i is
    rest[i] |y|^2 + sum over r of sign[i, r] (y @ directions[i, :, r])^2.
    """

    kept: NDArray[np.int64]
    origin: NDArray[np.float32]
    basis: NDArray[np.float32]
    mean: NDArray[np.float32]
    whiten: NDArray[np.float32]
    rest: NDArray[np.float32]
    directions: NDArray[np.float32]
    sign: NDArray[np.float32]


def fit(features: Features, config: FitConfig) -> onnx.ModelProto:  # noqa: ARG001  # nothing is drawn
    """Return a head that measures the distance from good parts; defects are not looked at."""
    graph = GraphBuilder(prefix="gaussian")
    _, distance = add_distance(graph, fit_gaussians(features.good))
    add_largest(graph, distance, LARGEST, output=SCORE)
    return close_head(graph, distance, channels=features.channels)


def fit_gaussians(good: NDArray[np.float32]) -> Gaussians:
    """Return the statistics of good parts."""
    count, channels = good.shape[:2]
    if count < 2:  # noqa: PLR2004  # one picture has no spread
        raise DatasetError(f"{count} pictures to teach from, at least 2 are needed: add good parts")
    cells = good.reshape(count, channels, CELLS)
    middle = cells.mean(axis=0, dtype=np.float64)
    spread = np.sqrt(((cells - middle.astype(np.float32)) ** 2).mean(axis=(0, 2), dtype=np.float64))
    kept = np.flatnonzero(spread > _FLAT)
    if kept.size == 0:
        raise DatasetError("all good pictures are identical: teach from pictures of many parts")
    origin = middle.mean(axis=1)[kept].astype(np.float32)
    basis = _basis(cells[:, kept], spread[kept])
    values = (cells[:, kept] - origin[:, np.newaxis]).transpose(2, 0, 1) @ basis
    mean = values.mean(axis=1, dtype=np.float64)
    width = basis.shape[1]
    covariance = np.empty((CELLS, width, width))
    for start in range(0, CELLS, _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        deviation = values[part] - mean[part, np.newaxis]
        covariance[part] = deviation.transpose(0, 2, 1) @ deviation / count
    shrunk = (1.0 - _SHARED) * covariance + _SHARED * covariance.mean(axis=0)
    shrunk += _RIDGE * np.eye(width)
    # With inv(S) = L L', the distance d' inv(S) d is the squared length of d' L.
    whiten = np.linalg.cholesky(np.linalg.inv(shrunk.mean(axis=0)))
    variance, vectors = np.linalg.eigh(whiten.T @ shrunk @ whiten)
    rank = min(_RANK, width)
    # Ratios of variance are what a likelihood feels, hence logarithms.
    precision = -np.log(variance)
    unusual = np.argsort(-np.abs(precision - precision.mean(axis=1, keepdims=True)), axis=1)
    first, others = unusual[:, :rank], unusual[:, rank:]
    rest = np.zeros(CELLS)
    if others.shape[1]:
        rest = np.exp(np.take_along_axis(precision, others, axis=1).mean(axis=1))
    beyond = np.exp(np.take_along_axis(precision, first, axis=1)) - rest[:, np.newaxis]
    directions = np.take_along_axis(vectors, first[:, np.newaxis, :], axis=2)
    return Gaussians(
        kept=kept.astype(np.int64),
        origin=origin,
        basis=basis,
        mean=mean.astype(np.float32),
        whiten=(whiten / np.sqrt(width)).astype(np.float32),
        rest=rest.astype(np.float32),
        directions=(directions * np.sqrt(np.abs(beyond))[:, np.newaxis, :]).astype(np.float32),
        sign=np.sign(beyond).astype(np.float32),
    )


def _basis(cells: NDArray[np.float32], spread: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return channels x directions: every feature in units of its spread, and not too many."""
    units = np.diag(1.0 / spread)
    if len(spread) <= _WIDEST:
        return units.astype(np.float32)
    some = cells[:, :, :: CELLS // _AT_ONCE].transpose(2, 0, 1)
    some = ((some - some.mean(axis=1, keepdims=True)) / spread).reshape(-1, len(spread))
    _, vectors = np.linalg.eigh(some.T @ some)
    return np.asarray(units @ vectors[:, -_WIDEST:], np.float32)


def add_distance(graph: GraphBuilder, gaussians: Gaussians) -> tuple[str, str]:
    """Add the graph's way to deviations (cells x directions) and distances (cells)."""
    cells = add_cells(graph, gaussians.kept)
    centred = graph.add("Sub", cells, graph.constant(gaussians.origin))
    values = graph.add("MatMul", centred, graph.constant(gaussians.basis))
    deviation = graph.add("Sub", values, graph.constant(gaussians.mean))
    white = graph.add("MatMul", deviation, graph.constant(gaussians.whiten))
    along = graph.constant(np.array([1], np.int64))
    length = graph.add("ReduceSumSquare", white, along, keepdims=0)
    plain = graph.add("Mul", length, graph.constant(gaussians.rest))
    shares = graph.add(
        "MatMul", graph.add("Unsqueeze", white, along), add_half(graph, gaussians.directions)
    )
    shares = graph.add("Squeeze", shares, along)
    signed = graph.add("Mul", graph.add("Mul", shares, shares), add_half(graph, gaussians.sign))
    square = graph.add("Add", plain, graph.add("ReduceSum", signed, along, keepdims=0))
    # Rounding to 16 bits may leave a hair below zero.
    return deviation, graph.add("Sqrt", graph.add("Relu", square))
