"""What happens to a picture before it reaches a foreign graph, as nodes of the same graph.

Each way of resizing is that of a library people train with, to the rounding: `bytes` with
`antialias` is Pillow's, without it OpenCV's; `floats` is what torch does with a tensor.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from onnx import TensorProto

from qcnode.runtime.graph import IMAGE, Nodes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

Triple = tuple[float, float, float]

NORMS: Final[Mapping[str, tuple[Triple, Triple]]] = {
    "unit": ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0)),
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "signed": ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
    "raw": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "caffe": ((123.68, 116.779, 103.939), (1.0, 1.0, 1.0)),
}
"""Mean and spread that pixels of 0 to 255 are brought to, in the order of RGB."""

_LUMA: Final = (0.299, 0.587, 0.114)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """One way to bring a picture to a graph that takes `height` x `width`.

    `short` is the shorter side before a crop; where nothing is resized, the fields of
    resizing say nothing, and `settled` makes them all alike.
    """

    height: int
    width: int
    channels: int = 3
    layout: Literal["nchw", "nhwc"] = "nchw"
    dtype: Literal["float32", "float16", "uint8"] = "float32"
    colour: Literal["rgb", "bgr"] = "rgb"
    fit: Literal["stretch", "letterbox", "crop"] = "stretch"
    short: int = 0
    kernel: Literal["linear", "cubic", "nearest"] = "linear"
    antialias: bool = True
    on: Literal["bytes", "floats"] = "bytes"
    norm: str = "unit"
    mean: Triple | None = None
    std: Triple | None = None
    pad: int = 114

    def words(self) -> str:
        """Say it in one line, for the record."""
        parts = [f"{self.width}x{self.height} {self.colour} {self.layout} {self.dtype}"]
        if self.kernel != "nearest" or self.fit != "stretch":
            how = f"{self.kernel}{' antialiased' if self.antialias else ''} on {self.on}"
            parts.append(f"{self.fit}{f' from {self.short}' if self.fit == 'crop' else ''}, {how}")
        if self.mean is not None and self.std is not None:
            parts.append(f"mean {self.mean}, std {self.std}")
        else:
            parts.append(f"norm {self.norm}")
        return "; ".join(parts)

    def inner(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return rows and columns of the picture once it is resized."""
        rows, columns = size
        if self.fit == "letterbox":
            gain = min(self.height / rows, self.width / columns)
            return round(rows * gain), round(columns * gain)
        if self.fit == "crop":
            if columns <= rows:
                return int(self.short * rows / columns), self.short
            return self.short, int(self.short * columns / rows)
        return self.height, self.width

    def offset(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return where the resized picture begins in what the graph sees; cut off is negative."""
        rows, columns = self.inner(size)
        if self.fit == "letterbox":
            return round((self.height - rows) / 2 - 0.1), round((self.width - columns) / 2 - 0.1)
        return -round((rows - self.height) / 2.0), -round((columns - self.width) / 2.0)

    def settled(self, size: tuple[int, int]) -> tuple[Any, ...]:
        """Return what counts of it for pictures of this size; alike means the same graph."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.inner(size) == size:
            values.update(kernel=None, antialias=None, on=None)
        if (self.height, self.width) == self.inner(size):
            values.update(fit=None, short=None, pad=None)
        return tuple(values.values())


def prepare(how: Preparation, size: tuple[int, int]) -> tuple[Nodes, str]:
    """Return nodes from the picture (uint8, rows x columns x 3) to what the graph takes."""
    nodes = Nodes("before")
    upright = nodes.add("Transpose", IMAGE, perm=[2, 0, 1])
    value = nodes.add("Reshape", upright, nodes.ints(1, 3, *size))
    if how.colour == "bgr":
        value = nodes.add("Gather", value, nodes.ints(2, 1, 0), axis=1)
    value = _resize(nodes, value, how, size)
    value = _place(nodes, value, how, size)
    if how.channels == 1:
        luma = _LUMA if how.colour == "rgb" else _LUMA[::-1]
        weights = nodes.constant(np.array(luma, np.float32).reshape(1, 3, 1, 1))
        value = nodes.add("Round", nodes.add("Conv", value, weights))
    mean, std = (how.mean, how.std) if how.mean and how.std else NORMS[how.norm]
    if how.colour == "bgr" and how.channels != 1:
        mean, std = mean[::-1], std[::-1]
    shape = (1, how.channels, 1, 1)
    if any(mean):
        value = nodes.add("Sub", value, nodes.constant(_column(mean, shape)))
    if set(std) != {1.0}:
        value = nodes.add("Div", value, nodes.constant(_column(std, shape)))
    if how.layout == "nhwc":
        value = nodes.add("Transpose", value, perm=[0, 2, 3, 1])
    if how.dtype != "float32":
        kind = TensorProto.FLOAT16 if how.dtype == "float16" else TensorProto.UINT8
        value = nodes.add("Cast", value, to=kind)
    return nodes, value


def _column(values: Triple, shape: tuple[int, ...]) -> Any:
    return np.array(values[: shape[1]], np.float32).reshape(shape)


def _resize(nodes: Nodes, value: str, how: Preparation, size: tuple[int, int]) -> str:
    rows, columns = how.inner(size)
    if (rows, columns) == size:
        return nodes.add("Cast", value, to=TensorProto.FLOAT)
    target = nodes.ints(1, 3, rows, columns)
    if how.kernel == "nearest":
        value = nodes.add(
            "Resize",
            value,
            "",
            "",
            target,
            mode="nearest",
            nearest_mode="floor",
            coordinate_transformation_mode="asymmetric",
        )
        return nodes.add("Cast", value, to=TensorProto.FLOAT)
    options: dict[str, Any] = {"mode": how.kernel, "antialias": int(how.antialias)}
    if how.antialias:
        # At the rim a window is cut off, as Pillow and torch do, and not filled up.
        options["exclude_outside"] = 1
    if how.kernel == "cubic":
        # Pillow's curve is flatter than OpenCV's and that of torch without antialias.
        options["cubic_coeff_a"] = -0.5 if how.antialias else -0.75
    if how.on == "bytes" and how.kernel == "linear" and not how.antialias:
        return _as_opencv(nodes, value, size, (rows, columns))
    if how.on == "bytes" and how.antialias:
        value = nodes.add("Resize", value, "", "", target, **options)
        return nodes.add("Cast", value, to=TensorProto.FLOAT)
    value = nodes.add("Cast", value, to=TensorProto.FLOAT)
    value = nodes.add("Resize", value, "", "", target, **options)
    if how.on == "floats":
        return value
    low, high = nodes.constant(0.0, np.float32), nodes.constant(255.0, np.float32)
    return nodes.add("Clip", nodes.add("Round", value), low, high)


_FINE: Final = 2048


def _as_opencv(nodes: Nodes, value: str, size: tuple[int, int], target: tuple[int, int]) -> str:
    """Blend four neighbours in whole numbers, as OpenCV does for bytes, with all it cuts off."""
    rows, columns = (_neighbours(before, after) for before, after in zip(size, target, strict=True))
    whole = nodes.add("Cast", value, to=TensorProto.INT32)
    blended = []
    for at, share in ((rows[0], rows[2]), (rows[1], rows[3])):
        line = nodes.add("Gather", whole, nodes.constant(at, np.int64), axis=2)
        sides = [
            nodes.add(
                "Mul",
                nodes.add("Gather", line, nodes.constant(column, np.int64), axis=3),
                nodes.constant(weight, np.int32),
            )
            for column, weight in ((columns[0], columns[2]), (columns[1], columns[3]))
        ]
        across = nodes.add("Div", nodes.add("Add", *sides), nodes.constant(16, np.int32))
        down = nodes.add("Mul", across, nodes.constant(share[:, np.newaxis], np.int32))
        blended.append(nodes.add("Div", down, nodes.constant(65536, np.int32)))
    total = nodes.add("Add", nodes.add("Add", *blended), nodes.constant(2, np.int32))
    four = nodes.add("Div", total, nodes.constant(4, np.int32))
    return nodes.add("Cast", four, to=TensorProto.FLOAT)


def _neighbours(before: int, after: int) -> tuple[NDArray[Any], ...]:
    """Return the two places each pixel lies between, and their shares of 2048."""
    exact = ((np.arange(after) + 0.5) * (before / after) - 0.5).astype(np.float32)
    first = np.floor(exact).astype(np.int64)
    share = exact - first.astype(np.float32)
    share[(first < 0) | (first >= before - 1)] = 0.0
    first = np.clip(first, 0, before - 1)
    second = np.minimum(first + 1, before - 1)
    near = np.rint((np.float32(1.0) - share) * _FINE).astype(np.int32)
    return first, second, near, np.rint(share * _FINE).astype(np.int32)


def _place(nodes: Nodes, value: str, how: Preparation, size: tuple[int, int]) -> str:
    rows, columns = how.inner(size)
    top, left = how.offset(size)
    if (rows, columns) == (how.height, how.width):
        return value
    if how.fit == "letterbox":
        bottom, right = how.height - rows - top, how.width - columns - left
        pads = nodes.ints(0, 0, top, left, 0, 0, bottom, right)
        return nodes.add("Pad", value, pads, nodes.constant(float(how.pad), np.float32))
    value = nodes.cut(value, -top, -top + how.height, axis=2)
    return nodes.cut(value, -left, -left + how.width, axis=3)
