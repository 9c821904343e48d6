"""Small models as exporters write them, and the training side's own way to ask them.

The graphs have the inputs, outputs and metadata of the real exporters. Their filters are
drawn once and their last layer is learned on drawn parts, so answers depend on colour,
resizing and scale as those of a large model do. `Trained.score` prepares pictures with
OpenCV, or with Pillow's rule written out, and never with the node's own graph.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from qcnode.picture import encode_png

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

SIDE = 64
ROWS, COLUMNS = 150, 200
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
FILTERS = 12
LOCAL = 0.04
"""How much of a cell's answer is its own."""


def draw_part(rng: np.random.Generator, *, scratched: bool) -> NDArray[np.uint8]:
    """Return a picture of a coloured part with fine texture, and a scratch on some."""
    picture = np.empty((ROWS, COLUMNS, 3), np.float32)
    picture[:] = (150, 90, 40)
    cv2.circle(picture, (100, 75), 50, (60, 120, 170), -1)
    stripes = 18 * np.sin(np.arange(COLUMNS) * rng.uniform(1.5, 2.0))
    picture += stripes[np.newaxis, :, np.newaxis] * (1.0, 0.4, 0.1)
    if scratched:
        x, y = int(rng.integers(55, 115)), int(rng.integers(45, 95))
        end = (x + int(rng.integers(20, 35)), y + int(rng.integers(-15, 15)))
        cv2.line(picture, (x, y), end, (235, 40, 30), int(rng.integers(4, 8)))
    picture *= rng.uniform(0.93, 1.07)
    picture += rng.normal(0, 7, picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8)


# -- preparing pictures as people do who train -----------------------------------------


def pillow(picture: NDArray[np.uint8], rows: int, columns: int, kernel: str) -> NDArray[np.uint8]:
    """Resize as Pillow does: wide windows when shrinking, bytes between the two passes."""
    reach, curve = {"linear": (1.0, _triangle), "cubic": (2.0, _keys)}[kernel]
    wide = _pass(picture.transpose(0, 2, 1), columns, reach, curve).transpose(0, 2, 1)
    return _pass(wide.transpose(1, 2, 0), rows, reach, curve).transpose(2, 0, 1)


def _pass(
    values: NDArray[np.uint8], size: int, reach: float, curve: Callable[[Any], Any]
) -> NDArray[np.uint8]:
    before = values.shape[-1]
    scale = before / size
    wide = max(scale, 1.0)
    weights = np.zeros((before, size), np.int64)
    for at in range(size):
        centre = (at + 0.5) * scale
        low = max(int(centre - reach * wide + 0.5), 0)
        high = min(int(centre + reach * wide + 0.5), before)
        part = curve((np.arange(low, high) + 0.5 - centre) / wide)
        share = part / part.sum()
        weights[low:high, at] = np.trunc(share * 2**22 + np.where(share < 0, -0.5, 0.5))
    total = values.astype(np.int64) @ weights + 2**21
    return np.clip(total >> 22, 0, 255).astype(np.uint8)


def _triangle(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(1 - np.abs(x), 0)


def _keys(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.abs(x)
    a = -0.5
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def plain(picture: NDArray[np.uint8], rows: int, columns: int, kernel: str) -> NDArray[np.uint8]:
    """Resize as OpenCV does."""
    how = {"linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC, "nearest": cv2.INTER_NEAREST}
    return cv2.resize(picture, (columns, rows), interpolation=how[kernel])


def letterbox(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Fit into a square on grey, as Ultralytics does."""
    rows, columns = picture.shape[:2]
    gain = min(SIDE / rows, SIDE / columns)
    inner = plain(picture, round(rows * gain), round(columns * gain), "linear")
    down, along = (SIDE - inner.shape[0]) / 2, (SIDE - inner.shape[1]) / 2
    top, left = round(down - 0.1), round(along - 0.1)
    bottom, right = round(down + 0.1), round(along + 0.1)
    grey = (114, 114, 114)
    return cv2.copyMakeBorder(inner, top, bottom, left, right, cv2.BORDER_CONSTANT, value=grey)


def crop(picture: NDArray[np.uint8], short: int, kernel: str) -> NDArray[np.uint8]:
    """Shrink the shorter side and take the middle, as torchvision and timm do."""
    rows, columns = picture.shape[:2]
    small = pillow(picture, short, int(short * columns / rows), kernel)
    top, left = round((small.shape[0] - SIDE) / 2), round((small.shape[1] - SIDE) / 2)
    return small[top : top + SIDE, left : left + SIDE]


def scaled(picture: NDArray[np.uint8], mean: Any, std: Any) -> NDArray[np.float32]:
    """Return N, C, H, W with mean and spread of 0 to 1, as `ToTensor` and `Normalize` do."""
    floats = (picture.astype(np.float32) / 255 - np.float32(mean)) / np.float32(std)
    return np.ascontiguousarray(floats.transpose(2, 0, 1)[np.newaxis], np.float32)


# -- what was trained --------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """A model file and the training side's way to ask it; `truth` is what is right of it."""

    kind: str
    model: onnx.ModelProto
    prepare: Callable[[NDArray[np.uint8]], NDArray[Any]]
    number: Callable[[dict[str, NDArray[Any]]], float]
    higher: str = "defective"
    truth: dict[str, Any] = field(default_factory=dict)
    asks: dict[str, Any] = field(default_factory=dict)
    """What must be said because neither file nor pictures do."""

    def score(self, picture: NDArray[np.uint8]) -> float:
        session = ort.InferenceSession(
            self.model.SerializeToString(), _quiet(), providers=["CPUExecutionProvider"]
        )
        names = [item.name for item in session.get_outputs()]
        feed = {session.get_inputs()[0].name: self.prepare(picture)}
        return self.number(dict(zip(names, session.run(None, feed), strict=True)))

    def write(self, folder: Path, *, labels: bool = True) -> tuple[Path, Path]:
        """Write the model and its golden pictures; return where."""
        golden = folder / "golden"
        golden.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(11)
        said = {}
        for number in range(6):
            scratched = number % 2 == 1
            picture = draw_part(rng, scratched=scratched)
            (golden / f"{number}.png").write_bytes(encode_png(picture))
            one: dict[str, Any] = {"score": self.score(picture)}
            if labels:
                one["label"] = "scratch" if scratched else "good"
            said[f"{number}.png"] = one
        (golden / "expected.json").write_text(json.dumps({"pictures": said}))
        path = folder / "model.onnx"
        path.write_bytes(self.model.SerializeToString())
        return path, golden


def _quiet() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return options


class _Net:
    """Nodes of a small network over N, C, H, W floats, with filters drawn from a seed."""

    def __init__(self, seed: int, entry: str) -> None:
        rng = np.random.default_rng(seed)
        kernels = rng.normal(0, 0.4, (FILTERS, 3, 5, 5)).astype(np.float32)
        kernels[: FILTERS // 2] -= kernels[: FILTERS // 2].mean(axis=(2, 3), keepdims=True)
        self.rng = rng
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.add("Conv", [entry, self.constant("kernels", kernels)], "filtered", strides=[2, 2])
        self.add("Relu", ["filtered"], "features")

    def constant(self, name: str, value: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def model(
        self,
        inputs: tuple[str, list[Any]],
        outputs: list[tuple[str, int, list[Any]]],
        *,
        opset: int = 17,
        **metadata: str,
    ) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "main_graph",
            [helper.make_tensor_value_info(inputs[0], TensorProto.FLOAT, inputs[1])],
            [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in outputs],
            self.constants,
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", opset)],
            ir_version=8,
            producer_name="pytorch",
        )
        helper.set_model_props(model, metadata)
        onnx.checker.check_model(model)
        return model

    def learn(
        self, entry: str, shape: list[Any], prepare: Callable[[NDArray[np.uint8]], NDArray[Any]]
    ) -> tuple[NDArray[np.float32], float]:
        """Return the layer that tells scratched parts from good ones, by least squares."""
        graph = helper.make_graph(
            [*self.nodes, helper.make_node("GlobalAveragePool", ["features"], ["pooled"])],
            "features",
            [helper.make_tensor_value_info(entry, TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("pooled", TensorProto.FLOAT, None)],
            self.constants,
        )
        made = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
        ).SerializeToString()
        session = ort.InferenceSession(made, _quiet(), providers=["CPUExecutionProvider"])
        rows, wanted = [], []
        rng = np.random.default_rng(5)
        for number in range(60):
            picture = draw_part(rng, scratched=number % 2 == 1)
            (pooled,) = session.run(None, {entry: prepare(picture)})
            rows.append(pooled.reshape(-1))
            wanted.append(4.0 if number % 2 else -4.0)
        table = np.array(rows)
        centre, spread = table.mean(axis=0), table.std(axis=0) + 1e-6
        unit = (table - centre) / spread
        weights = np.linalg.solve(unit.T @ unit + 60 * np.eye(FILTERS), unit.T @ np.array(wanted))
        return (weights / spread).astype(np.float32), float(-(weights / spread) @ centre)


def _softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64) - logits.max())
    return powers / powers.sum()


def _classifier_head(net: _Net, weights: Any, bias: float, *, opposite: bool = False) -> None:
    """Two logits, of which the second is for defective parts."""
    sign = -1.0 if opposite else 1.0
    matrix = np.stack([-0.5 * sign * weights, 0.5 * sign * weights], axis=1)
    offsets = np.array([-0.5 * sign * bias, 0.5 * sign * bias], np.float32)
    net.add("GlobalAveragePool", ["features"], "pooled")
    net.add("Flatten", ["pooled"], "flat")
    net.add(
        "Gemm",
        ["flat", net.constant("w", matrix.astype(np.float32)), net.constant("b", offsets)],
        "logits",
    )


def torchvision_classifier(seed: int = 0, *, swapped: bool = False) -> Trained:
    """As `torch.onnx.export` writes a torchvision classifier: names, and nothing else."""

    def prepare(picture: NDArray[np.uint8]) -> NDArray[Any]:
        return scaled(crop(picture, 73, "linear"), *IMAGENET)

    net = _Net(seed, "input")
    shape = [1, 3, SIDE, SIDE]
    _classifier_head(net, *net.learn("input", shape, prepare), opposite=swapped)
    net.add("Identity", ["logits"], "output")
    return Trained(
        kind="torchvision",
        model=net.model(("input", shape), [("output", TensorProto.FLOAT, [1, 2])]),
        prepare=prepare,
        number=lambda answer: float(_softmax(answer["output"][0])[1 - swapped]),
        truth={
            "colour": "rgb",
            "fit": "crop",
            "kernel": "linear",
            "antialias": True,
            "norm": "imagenet",
            "classes": ("scratch", "good") if swapped else ("good", "scratch"),
            "higher": "defective",
        },
        asks={"classes": ("scratch", "good") if swapped else ("good", "scratch")},
    )


def timm_classifier(seed: int = 0) -> Trained:
    """As timm exports one: bicubic, a wide crop, and a scale of its own."""

    def prepare(picture: NDArray[np.uint8]) -> NDArray[Any]:
        return scaled(crop(picture, 67, "cubic"), (0.5,) * 3, (0.5,) * 3)

    net = _Net(seed + 100, "input")
    shape = [1, 3, SIDE, SIDE]
    _classifier_head(net, *net.learn("input", shape, prepare))
    net.add("Identity", ["logits"], "output")
    return Trained(
        kind="timm",
        model=net.model(("input", shape), [("output", TensorProto.FLOAT, [1, 2])], opset=18),
        prepare=prepare,
        number=lambda answer: float(_softmax(answer["output"][0])[1]),
        truth={
            "colour": "rgb",
            "fit": "crop",
            "kernel": "cubic",
            "antialias": True,
            "norm": "signed",
            "classes": ("good", "scratch"),
            "higher": "defective",
        },
        asks={"classes": ("good", "scratch")},
    )


def _ultralytics(task: str, names: dict[int, str]) -> dict[str, str]:
    return {
        "description": f"Ultralytics YOLO11n-{task} model trained on parts.yaml",
        "author": "Ultralytics",
        "date": "2026-11-01T08:00:00.000000",
        "version": "8.3.200",
        "license": "AGPL-3.0 License (https://ultralytics.com/license)",
        "docs": "https://docs.ultralytics.com",
        "stride": "32",
        "task": task,
        "batch": "1",
        "imgsz": str([SIDE, SIDE]),
        "names": str(names),
        "args": "{'batch': 1, 'half': False, 'dynamic': False, 'simplify': True, 'nms': False}",
        "channels": "3",
    }


def ultralytics_classify(seed: int = 0) -> Trained:
    """As `yolo export` writes `-cls`: a softmax inside, names in the metadata."""

    def prepare(picture: NDArray[np.uint8]) -> NDArray[Any]:
        return scaled(crop(picture, SIDE, "linear"), (0.0,) * 3, (1.0,) * 3)

    net = _Net(seed + 200, "images")
    shape = [1, 3, SIDE, SIDE]
    _classifier_head(net, *net.learn("images", shape, prepare))
    net.add("Softmax", ["logits"], "output0", axis=1)
    about = _ultralytics("classify", {0: "good", 1: "scratch"})
    return Trained(
        kind="ultralytics-cls",
        model=net.model(("images", shape), [("output0", TensorProto.FLOAT, [1, 2])], **about),
        prepare=prepare,
        number=lambda answer: float(answer["output0"][0][1]),
        truth={
            "colour": "rgb",
            "fit": "crop",
            "kernel": "linear",
            "antialias": True,
            "norm": "unit",
            "classes": ("good", "scratch"),
            "higher": "defective",
        },
    )


def _dense(
    net: _Net, prepare: Callable[[NDArray[np.uint8]], NDArray[Any]], entry: str
) -> tuple[str, int]:
    """Return logits on a coarse grid, each for the part of the picture below it."""
    shape = [1, 3, SIDE, SIDE]
    weights, bias = net.learn(entry, shape, prepare)
    net.add("AveragePool", ["features"], "local", kernel_shape=[6, 6], strides=[6, 6])
    net.add("GlobalAveragePool", ["features"], "whole")
    net.add("Mul", ["local", net.constant("little", np.array(LOCAL, np.float32))], "some")
    net.add("Mul", ["whole", net.constant("most", np.array(1 - LOCAL, np.float32))], "rest")
    net.add("Add", ["some", "rest"], "coarse")
    net.add(
        "Conv",
        [
            "coarse",
            net.constant("w", weights.reshape(1, FILTERS, 1, 1)),
            net.constant("b", np.array([bias], np.float32)),
        ],
        "cells",
    )
    return "cells", 5


def _ultralytics_boxes(seed: int, *, masks: bool) -> Trained:
    def prepare(picture: NDArray[np.uint8]) -> NDArray[Any]:
        return scaled(letterbox(picture), (0.0,) * 3, (1.0,) * 3)

    net = _Net(seed + (400 if masks else 300), "images")
    cells, side = _dense(net, prepare, "images")
    count = side * side
    net.add("Reshape", [cells, net.constant("flat", np.array([1, 1, count]))], "logit")
    net.add("Sigmoid", ["logit"], "first")
    net.add("Mul", ["first", net.constant("less", np.array(0.5, np.float32))], "second")
    centres = (np.arange(side) * 12 + 8).astype(np.float32)
    boxes = np.stack(
        [
            np.tile(centres, side),
            np.repeat(centres, side),
            np.full(count, 12, np.float32),
            np.full(count, 12, np.float32),
        ]
    )[np.newaxis]
    parts = [net.constant("boxes", boxes), "first", "second"]
    outputs = [("output0", TensorProto.FLOAT, [1, 6 + 32 * masks, count])]
    if masks:
        weights = net.constant("m", net.rng.normal(0, 1, (32, FILTERS, 1, 1)).astype(np.float32))
        net.add("Conv", ["coarse", weights], "mask_cells")
        net.add("Reshape", ["mask_cells", net.constant("mf", np.array([1, 32, count]))], "mask")
        parts.append("mask")
        net.add("Conv", ["features", weights], "output1")
        outputs.append(("output1", TensorProto.FLOAT, [1, 32, 30, 30]))
    net.add("Concat", parts, "output0", axis=1)
    task = "segment" if masks else "detect"
    about = _ultralytics(task, {0: "scratch", 1: "dent"})
    return Trained(
        kind=f"ultralytics-{task}",
        model=net.model(("images", [1, 3, SIDE, SIDE]), outputs, **about),
        prepare=prepare,
        number=lambda answer: float(answer["output0"][0, 4:6].max()),
        truth={
            "colour": "rgb",
            "fit": "letterbox",
            "kernel": "linear",
            "antialias": False,
            "norm": "unit",
            "higher": "defective",
        },
    )


def ultralytics_detect(seed: int = 0) -> Trained:
    """As `yolo export` writes a detector."""
    return _ultralytics_boxes(seed, masks=False)


def ultralytics_segment(seed: int = 0) -> Trained:
    """As `yolo export` writes `-seg`: mask coefficients behind the classes, and prototypes."""
    return _ultralytics_boxes(seed, masks=True)


def anomalib(seed: int = 0) -> Trained:
    """As Anomalib 2 exports: normalisation inside, a score, a map and what it decided."""
    mean, std = IMAGENET

    def prepare(picture: NDArray[np.uint8]) -> NDArray[Any]:
        return scaled(pillow(picture, SIDE, SIDE, "linear"), (0.0,) * 3, (1.0,) * 3)

    def inside(picture: NDArray[np.uint8]) -> NDArray[Any]:
        return scaled(pillow(picture, SIDE, SIDE, "linear"), mean, std)

    net = _Net(seed + 500, "normal")
    cells, _ = _dense(net, inside, "normal")
    before = [
        helper.make_node("Sub", ["input", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["normal"]),
    ]
    net.constant("mean", np.float32(mean).reshape(1, 3, 1, 1))
    net.constant("std", np.float32(std).reshape(1, 3, 1, 1))
    net.nodes[:0] = before
    net.add("Sigmoid", [cells], "small")
    scales = net.constant("scales", np.array([1, 1, 12.8, 12.8], np.float32))
    net.nodes.append(
        helper.make_node("Resize", ["small", "", scales], ["anomaly_map"], mode="linear")
    )
    net.add("GlobalMaxPool", ["small"], "peak")
    net.add("Reshape", ["peak", net.constant("one", np.array([1]))], "pred_score")
    half = net.constant("half", np.array(0.5, np.float32))
    net.add("Greater", ["pred_score", half], "pred_label")
    net.add("Greater", ["anomaly_map", half], "pred_mask")
    return Trained(
        kind="anomalib",
        model=net.model(
            ("input", ["batch_size", 3, SIDE, SIDE]),
            [
                ("pred_score", TensorProto.FLOAT, [1]),
                ("pred_label", TensorProto.BOOL, [1]),
                ("anomaly_map", TensorProto.FLOAT, [1, 1, SIDE, SIDE]),
                ("pred_mask", TensorProto.BOOL, [1, 1, SIDE, SIDE]),
            ],
        ),
        prepare=prepare,
        number=lambda answer: float(answer["pred_score"][0]),
        truth={
            "colour": "rgb",
            "fit": "stretch",
            "kernel": "linear",
            "antialias": True,
            "norm": "unit",
            "higher": "defective",
        },
    )


def rf_detr(seed: int = 0) -> Trained:
    """As RF-DETR exports: boxes as shares of the picture, and logits beside them."""

    def prepare(picture: NDArray[np.uint8]) -> NDArray[Any]:
        return scaled(pillow(picture, SIDE, SIDE, "linear"), *IMAGENET)

    net = _Net(seed + 600, "input")
    cells, side = _dense(net, prepare, "input")
    count = side * side
    net.add("Reshape", [cells, net.constant("flat", np.array([1, count, 1]))], "logit")
    spread = net.constant("spread", np.array([[1.0, 0.6, 0.3]], np.float32))
    net.add("MatMul", ["logit", spread], "labels")
    centres = ((np.arange(side) * 12 + 8) / SIDE).astype(np.float32)
    boxes = np.stack(
        [
            np.tile(centres, side),
            np.repeat(centres, side),
            np.full(count, 0.2, np.float32),
            np.full(count, 0.2, np.float32),
        ],
        axis=1,
    )[np.newaxis]
    net.add("Identity", [net.constant("boxes", boxes)], "dets")
    return Trained(
        kind="rf-detr",
        model=net.model(
            ("input", [1, 3, SIDE, SIDE]),
            [
                ("dets", TensorProto.FLOAT, [1, count, 4]),
                ("labels", TensorProto.FLOAT, [1, count, 3]),
            ],
        ),
        prepare=prepare,
        number=lambda answer: float((1 / (1 + np.exp(-answer["labels"].astype(float)))).max()),
        truth={
            "colour": "rgb",
            "fit": "stretch",
            "kernel": "linear",
            "antialias": True,
            "norm": "imagenet",
            "higher": "defective",
        },
    )


def keras_like(seed: int = 0) -> Trained:
    """Plain ONNX as converters from other houses write it: N, H, W, C, BGR, and P(good)."""

    def prepare(picture: NDArray[np.uint8]) -> NDArray[Any]:
        small = plain(picture[:, :, ::-1], SIDE, SIDE, "linear")
        return np.ascontiguousarray(small[np.newaxis], np.float32)

    def upright(picture: NDArray[np.uint8]) -> NDArray[Any]:
        return np.ascontiguousarray(prepare(picture).transpose(0, 3, 1, 2))

    net = _Net(seed + 700, "upright")
    weights, bias = net.learn("upright", [1, 3, SIDE, SIDE], upright)
    net.nodes.insert(0, helper.make_node("Transpose", ["x"], ["upright"], perm=[0, 3, 1, 2]))
    net.add("GlobalAveragePool", ["features"], "pooled")
    net.add("Flatten", ["pooled"], "flat")
    net.add(
        "Gemm",
        [
            "flat",
            net.constant("w", -weights.reshape(-1, 1)),
            net.constant("b", np.array([-bias], np.float32)),
        ],
        "logit",
    )
    net.add("Sigmoid", ["logit"], "probability")
    return Trained(
        kind="plain",
        model=net.model(
            ("x", [1, SIDE, SIDE, 3]), [("probability", TensorProto.FLOAT, [1, 1])], opset=13
        ),
        prepare=prepare,
        number=lambda answer: float(answer["probability"][0, 0]),
        higher="good",
        truth={
            "colour": "bgr",
            "fit": "stretch",
            "kernel": "linear",
            "antialias": False,
            "norm": "raw",
            "higher": "good",
        },
    )


EXPORTS: dict[str, Callable[[int], Trained]] = {
    "torchvision": torchvision_classifier,
    "timm": timm_classifier,
    "ultralytics classify": ultralytics_classify,
    "ultralytics detect": ultralytics_detect,
    "ultralytics segment": ultralytics_segment,
    "anomalib": anomalib,
    "rf-detr": rf_detr,
    "plain": keras_like,
}
