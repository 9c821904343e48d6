"""What pictures are described by: graphs from a picture to features, alone or together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
from onnx import TensorProto, helper

from qcmodels.bank import FEATURES, GRID, IMAGE, SIZE, GraphBuilder, add_bank, add_sized
from qcnode.picture import seen_at
from qcnode.runtime.onnx import open_session

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import onnx
    from numpy.typing import NDArray

Part: TypeAlias = "Callable[[GraphBuilder, str], str]"

_PARTS: Final[dict[str, Part]] = {"bank": add_bank}
KINDS: Final = ("bank",)
"""Kinds of features a family may be taught on; the first is the one for all other uses."""


def build_source(kind: str) -> onnx.ModelProto:
    """Return the graph from a picture (uint8, any height x width x 3) to its features.

    The same graph, byte for byte, describes pictures when teaching and on the line.
    """
    return join_parts([_PARTS[name] for name in kind.split("+")])


def join_parts(parts: Sequence[Part]) -> onnx.ModelProto:
    """Return one graph that describes a picture in several ways, one after another."""
    graph = GraphBuilder(prefix="source")
    sized = add_sized(graph)
    described = [part(graph, sized) for part in parts]
    graph.add("Concat", *described, axis=1, output=FEATURES)
    return graph.model(
        "source",
        inputs=[helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, ["height", "width", 3])],
        outputs=[helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, [1, None, GRID, GRID])],
    )


class Describer:
    """Every kind of features of a picture, each part computed once."""

    def __init__(self, *, threads: int) -> None:
        self._sessions = {
            name: open_session(build_source(name).SerializeToString(), threads=threads)
            for name in _PARTS
        }

    def __call__(self, pixels: NDArray[np.uint8]) -> Mapping[str, NDArray[np.float32]]:
        """Return channels x 32 x 32 for each of the kinds."""
        pixels = seen_at(pixels, SIZE)
        parts = {
            name: np.asarray(session.run([FEATURES], {IMAGE: pixels})[0][0])
            for name, session in self._sessions.items()
        }
        return {kind: np.concatenate([parts[name] for name in kind.split("+")]) for kind in KINDS}
