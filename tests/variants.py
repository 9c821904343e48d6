"""Small releases made by hand: cheap to run, honest about themselves, no two alike."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from qcmodels.release import list_files
from qcnode.manifest import (
    FILE_NAME,
    GoldenFrame,
    LimitPromise,
    ModelManifest,
    ModelOutputs,
    PictureInput,
    TaughtFrom,
    digest_scores,
    dump_manifest,
)
from qcnode.picture import encode_png

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

ROWS, COLUMNS = 24, 32
GRID = (3, 4)


def draw(brightness: float, *, seed: int = 0) -> NDArray[np.uint8]:
    """Return a picture of this mean brightness, with a little noise: defects are bright."""
    noise = np.random.default_rng(seed).normal(0, 4, (ROWS, COLUMNS, 3))
    return np.clip(brightness * 255 + noise, 0, 255).astype(np.uint8)


def score_of(pixels: NDArray[np.uint8], *, factor: float = 1.0) -> float:
    """Return what the model says, worked out without it."""
    return float(pixels.astype(np.float64).mean() / 255 * factor)


def make_graph(
    *, tag: str, factor: float = 1.0, work: int = 0, blind: tuple[float, float] | None = None
) -> bytes:
    """Return a model that scores by mean brightness; `work` convolutions only take time.

    Scores between the two of `blind` become nought.
    """
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "scale"], ["scaled"]),
        helper.make_node("ReduceMean", ["scaled"], ["score"], keepdims=0),
        helper.make_node("Expand", ["score", "grid"], ["map"]),
    ]
    constants = [
        numpy_helper.from_array(np.array(factor / 255, np.float32), "scale"),
        numpy_helper.from_array(np.array(GRID, np.int64), "grid"),
    ]
    if work:
        # Its answer is added nought times, so that it cannot be left out.
        weights = np.full((32, 32, 3, 3), 1e-3, np.float32)
        constants.append(numpy_helper.from_array(weights, "weights"))
        constants.append(numpy_helper.from_array(np.array([1, 32, 9, 8], np.int64), "shape"))
        constants.append(numpy_helper.from_array(np.array(0, np.float32), "nought"))
        nodes.insert(2, helper.make_node("Reshape", ["scaled", "shape"], ["work0"]))
        for number in range(work):
            nodes.insert(
                3 + number,
                helper.make_node(
                    "Conv", [f"work{number}", "weights"], [f"work{number + 1}"], pads=[1] * 4
                ),
            )
        nodes[-2] = helper.make_node("ReduceMean", ["scaled"], ["mean"], keepdims=0)
        nodes[-1:] = [
            helper.make_node("ReduceMean", [f"work{work}"], ["busy"], keepdims=0),
            helper.make_node("Mul", ["busy", "nought"], ["nothing"]),
            helper.make_node("Add", ["mean", "nothing"], ["score"]),
            helper.make_node("Expand", ["score", "grid"], ["map"]),
        ]
    if blind is not None:
        for name, value in (("low", blind[0]), ("high", blind[1]), ("none", 0.0)):
            constants.append(numpy_helper.from_array(np.array(value, np.float32), name))
        for node in nodes:
            node.output[:] = ["seen" if name == "score" else name for name in node.output]
        nodes[-1:-1] = [
            helper.make_node("Greater", ["seen", "low"], ["above"]),
            helper.make_node("Less", ["seen", "high"], ["below"]),
            helper.make_node("And", ["above", "below"], ["hidden"]),
            helper.make_node("Where", ["hidden", "none", "seen"], ["score"]),
        ]
    graph = helper.make_graph(
        nodes,
        tag,
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [ROWS, COLUMNS, 3])],
        [
            helper.make_tensor_value_info("score", TensorProto.FLOAT, []),
            helper.make_tensor_value_info("map", TensorProto.FLOAT, list(GRID)),
        ],
        constants,
    )
    opset = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def make_release(
    out: Path,
    *,
    tag: str,
    factor: float = 1.0,
    number: int = 0,
    work: int = 0,
    blind: tuple[float, float] | None = None,
    reject_from: float = 0.7,
) -> Path:
    """Write a release of a model that passes below 0.3 and rejects from 0.7, or as said."""
    contents = {"model.onnx": make_graph(tag=tag, factor=factor, work=work, blind=blind)}
    golden = []
    for index, (brightness, label) in enumerate(((0.1, "good"), (0.2, "good"), (0.9, "glare"))):
        path = f"golden/{index}.png"
        pixels = draw(brightness, seed=index)
        contents[path] = encode_png(pixels)
        value = score_of(pixels, factor=factor)
        golden.append(GoldenFrame(path=path, label=label, score=value, heat_max=value))
    good = tuple(np.linspace(0.05, 0.25, 40).tolist())
    manifest = ModelManifest(
        schema_version=2,
        name="plates",
        created_at=datetime(2026, 11, 22, tzinfo=UTC),
        family="by-hand",
        trials=(),
        model="model.onnx",
        input=PictureInput(name="image", layout="uint8 RGB HWC", height=ROWS, width=COLUMNS),
        outputs=ModelOutputs(score="score", heat="map", heat_rows=GRID[0], heat_columns=GRID[1]),
        labels=("good", "glare"),
        accept_below=_promise(0.3),
        reject_from=_promise(reject_from),
        prevalence=0.02,
        tokens_per_escalation=1_500,
        risk_coverage=(),
        taught_from=TaughtFrom(
            name="plates", sha256="0" * 64, taught=40, calibrated=40, defects=0, seed=0
        ),
        good_scores=good,
        defect_scores=(),
        calibration_sha256=digest_scores(good, ()),
        pictures=None,
        golden=tuple(golden),
        golden_tolerance=1e-3,
        files=list_files(contents),
        release=number,
    )
    for path, data in {**contents, FILE_NAME: dump_manifest(manifest)}.items():
        target = out / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return out


def _promise(value: float) -> LimitPromise:
    return LimitPromise(
        value=value,
        alpha=None,
        alpha_95=None,
        n=40,
        needed=0,
        guarantee=None,
        reason=f"set by hand to {value}",
    )
