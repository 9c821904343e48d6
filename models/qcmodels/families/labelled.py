"""The family `labelled`: the distance from good parts, and what labelled defects look like.

Beneath is the family `gaussian`. Beside its distances a picture is summed up by how its
cells deviate: on the whole, where it is oddest, and at both ends of each feature. Three
small logistic regressions, one for each of these views together with the distances, learn
what tells defects from good parts; their mean is the score, as odds of being defective.
A few views judged apart overfit less than one judgement over all of them.

Parts are summed up by Gaussians that were taught without them: to the one they taught,
good parts would look better than parts to come. Defects are shared out among the same
Gaussians, because one taught on fewer parts finds everything a little odder.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx
from onnx import TensorProto, helper

from qcmodels.bank import GRID, GraphBuilder
from qcmodels.families.contract import SCORE, TAUGHT, close_head
from qcmodels.families.gaussian import add_distance, fit_gaussians
from qcmodels.folds import draw_folds
from qcnode.errors import DatasetError
from qcnode.runtime.onnx import open_session

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcmodels.families.contract import Features, FitConfig
    from qcmodels.families.gaussian import Gaussians

DEFECTS_MIN: Final = 8
_SUMMARY: Final = "summary"
_FOLDS: Final = 3
_COUNTS: Final = (1, 5, 20, 100)
_OFTEN: Final = 20
"""How many cells stand for the oddest places, and for either end of a feature."""
_PENALTY: Final = 3.0
_STEPS: Final = 30
_ODDS_MAX: Final = 30.0
"""Bound of the logarithm of the odds: beyond, 32 bits hold no odds."""


def fit(features: Features, config: FitConfig) -> onnx.ModelProto:
    """Return a head that knows good parts and these defects."""
    have = len(features.defects)
    if have < DEFECTS_MIN:
        raise DatasetError(
            f"{have} labelled defects, the family `labelled` takes {DEFECTS_MIN}: label "
            f"{DEFECTS_MIN - have} more in train/<kind>, or leave --family out"
        )
    gaussians = fit_gaussians(features.good)
    spread = _spread(features.good, gaussians)
    good: list[NDArray[np.float64]] = []
    defects: list[NDArray[np.float64]] = []
    bad_folds = draw_folds(have, _FOLDS, seed=config.seed)
    good_folds = draw_folds(len(features.good), _FOLDS, seed=config.seed)
    for held, bad in zip(good_folds, bad_folds, strict=True):
        others = fit_gaussians(np.delete(features.good, held, axis=0))
        good.extend(_summarise(features.good[held], others, spread))
        defects.extend(_summarise(features.defects[bad], others, spread))
    weights, offset = _learn(np.array(good), np.array(defects))

    graph = GraphBuilder(prefix="labelled")
    summary, distance = _add_summary(graph, gaussians, spread)
    product = graph.add("Mul", summary, graph.constant(weights))
    total = graph.add("ReduceSum", product, keepdims=0)
    odds = graph.add("Add", total, graph.constant(offset))
    bounds = [graph.constant(np.array(end, np.float32)) for end in (-_ODDS_MAX, _ODDS_MAX)]
    graph.add("Exp", graph.add("Clip", odds, *bounds), output=SCORE)
    return close_head(graph, distance, channels=features.channels)


def _spread(good: NDArray[np.float32], gaussians: Gaussians) -> NDArray[np.float32]:
    """Return how far good parts lie from the mean of their cell, for each direction."""
    cells = good.reshape(*good.shape[:2], -1)[:, gaussians.kept].transpose(0, 2, 1)
    deviation = (cells - gaussians.origin) @ gaussians.basis - gaussians.mean
    return np.asarray(deviation.std(axis=(0, 1)), np.float32)


def _add_summary(
    graph: GraphBuilder, gaussians: Gaussians, spread: NDArray[np.float32]
) -> tuple[str, str]:
    deviation, distance = add_distance(graph, gaussians)
    scaled = graph.add("Mul", deviation, graph.constant(1.0 / spread))
    first = graph.constant(np.array([0], np.int64))
    largest, places = graph.top(distance, _COUNTS[-1])
    parts = []
    for count in _COUNTS:
        some = graph.add("Slice", largest, first, graph.constant(np.array([count], np.int64)))
        parts.append(graph.add("Log", graph.add("ReduceMean", some, first, keepdims=1)))
    parts.append(graph.add("Log", graph.add("ReduceMean", distance, first, keepdims=1)))
    oddest = graph.add("Slice", places, first, graph.constant(np.array([_OFTEN], np.int64)))
    high, _ = graph.top(scaled, _OFTEN)
    low, _ = graph.top(scaled, _OFTEN, largest=0)
    parts += [
        graph.add("ReduceMean", view, first, keepdims=0)
        for view in (scaled, graph.add("Gather", scaled, oddest, axis=0), high, low)
    ]
    return graph.add("Concat", *parts, axis=0, output=_SUMMARY), distance


def _summarise(
    pictures: NDArray[np.float32], gaussians: Gaussians, spread: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return the summary of each picture, by the nodes that will make it on the line."""
    graph = GraphBuilder(prefix="labelled")
    _add_summary(graph, gaussians, spread)
    model = graph.model(
        "summary",
        inputs=[
            helper.make_tensor_value_info(
                TAUGHT, TensorProto.FLOAT, [1, pictures.shape[1], GRID, GRID]
            )
        ],
        outputs=[helper.make_tensor_value_info(_SUMMARY, TensorProto.FLOAT, [None])],
    )
    session = open_session(model.SerializeToString())
    return np.array(
        [session.run([_SUMMARY], {TAUGHT: picture[np.newaxis]})[0] for picture in pictures],
        np.float64,
    )


def _learn(
    good: NDArray[np.float64], defects: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return one weight per value of the summary and an offset: the mean of three views."""
    rows = np.concatenate([good, defects])
    labels = np.concatenate([np.zeros(len(good)), np.ones(len(defects))])
    centre, scale = rows.mean(axis=0), rows.std(axis=0) + 1e-9
    rows = (rows - centre) / scale
    distances = len(_COUNTS) + 1
    channels = (rows.shape[1] - distances) // 4
    ends = distances + channels * np.array([0, 1, 2, 4])
    weights, offset = np.zeros(rows.shape[1]), 0.0
    for start, end in itertools.pairwise(ends):
        view = np.concatenate([np.arange(distances), np.arange(start, end)])
        slope, intercept = _regress(rows[:, view], labels)
        weights[view] += slope / (len(ends) - 1)
        offset += intercept / (len(ends) - 1)
    weights /= scale
    offset -= float(weights @ centre)
    return weights.astype(np.float32), np.array(offset, np.float32)


def _regress(
    rows: NDArray[np.float64], labels: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """Return slope and intercept of a ridge logistic regression, both classes weighing the same."""
    design = np.column_stack([rows, np.ones(len(rows))])
    penalty = np.append(np.full(rows.shape[1], _PENALTY), 1e-6)
    share = labels.mean()
    weight = np.where(labels > 0, 0.5 / share, 0.5 / (1 - share))
    beta = np.zeros(design.shape[1])
    for _ in range(_STEPS):
        chance = 1.0 / (1.0 + np.exp(-np.clip(design @ beta, -_ODDS_MAX, _ODDS_MAX)))
        slope = design.T @ (weight * (chance - labels)) + penalty * beta
        curve = (design * (weight * chance * (1 - chance))[:, np.newaxis]).T @ design
        step = np.linalg.solve(curve + np.diag(penalty), slope)
        beta -= step
        if np.abs(step).max() < 1e-6:  # noqa: PLR2004  # far below what a score shows
            break
    return beta[:-1], float(beta[-1])
