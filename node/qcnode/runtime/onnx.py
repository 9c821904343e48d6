"""A released model, run by ONNX Runtime on the engine that was chosen for it.

A model is let in only as its manifest describes it: every file by its digest, inputs
and outputs by name and type, and the golden frames by their scores, at every load. After
that an answer is a finite score for a picture of the right kind, or a `ModelError`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from qcnode.domain import Prediction
from qcnode.errors import ModelError, PictureError
from qcnode.manifest import load_manifest, read_verified
from qcnode.picture import seen_at, seen_of, size_of, unpack_picture
from qcnode.runtime.session import CPU, ORT_ERRORS, open_runner, open_session

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from qcnode.domain import Frame, Limits
    from qcnode.manifest import GoldenFrame, ModelManifest
    from qcnode.runtime.session import Engine

__all__ = ["ORT_ERRORS", "OnnxModel", "open_session"]


class OnnxModel:
    """A model from a release folder, proven when loaded, and asked one picture at a time."""

    def __init__(self, folder: Path, *, threads: int = 1, engine: Engine = CPU) -> None:
        """Load the release in `folder`, or raise `ManifestError` or `ModelError`."""
        self.manifest: ModelManifest = load_manifest(folder)
        self._version = self.manifest.version
        contents = read_verified(folder, self.manifest)
        self._where = folder / self.manifest.model
        try:
            self._session = open_session(
                contents[self.manifest.model], threads=threads, engine=engine
            )
        except ORT_ERRORS as error:
            raise ModelError(f"{self._where}: no model that runs here ({_line(error)})") from error
        self._check_graph()
        outputs = self.manifest.outputs
        self._runner = open_runner(
            self._session,
            engine,
            input_name=self.manifest.input.name,
            outputs=(outputs.score, outputs.heat),
        )
        if not self.manifest.golden:
            raise ModelError(f"{folder}: no golden frame to prove the model by: teach it anew")
        for golden in self.manifest.golden:
            self._check_golden(golden, contents[golden.path])

    @property
    def version(self) -> str:
        """Name and digest of what judges, as it goes on record."""
        return self._version

    @property
    def limits(self) -> Limits:
        """The limits this model was released with."""
        return self.manifest.limits

    @property
    def side(self) -> int | None:
        """How many pixels to a side it looks at, by the rule of `qcnode.picture`; None for all."""
        return self.manifest.input.side

    def predict(self, frame: Frame) -> Prediction:
        """Return the score, or raise `ModelError`; never a number that is no score."""
        _check_picture(frame.pixels, frame.name)
        self._check_size(size_of(frame), frame.name)
        try:
            pixels = seen_of(frame, self.side)
        except PictureError as error:
            raise ModelError(str(error)) from error
        score, heat = self.answer(pixels, frame.name)
        return Prediction(score=score, model=self.version, heat=heat)

    def interrupt(self) -> None:
        """End the picture in hand with a `ModelError`; any thread may ask."""
        self._runner.interrupt()

    def answer(self, pixels: NDArray[np.uint8], name: str) -> tuple[float, NDArray[np.float32]]:
        """Return score and map of pixels that `seen_of` gave, or raise `ModelError`."""
        outputs = self.manifest.outputs
        if self.side is not None:
            pixels = seen_at(pixels, self.side)
        try:
            score, heat = self._runner.run(pixels)
        except ORT_ERRORS as error:
            raise ModelError(f"{name}: the model failed ({_line(error)})") from error
        if score.size != 1 or heat.shape != (outputs.heat_rows, outputs.heat_columns):
            raise ModelError(f"{name}: the model answered in shapes {score.shape} and {heat.shape}")
        value = float(score.reshape(()))
        if not math.isfinite(value) or not np.isfinite(heat).all():
            raise ModelError(f"{name}: the model's answer is not a finite number")
        return value, heat

    def _check_size(self, size: tuple[int, int], name: str) -> None:
        expected = self.manifest.input
        for have, want in zip(size, (expected.height, expected.width), strict=True):
            if want is not None and have != want:
                raise ModelError(
                    f"{name}: {size[1]}x{size[0]} pixels, taught on "
                    f"{expected.width}x{expected.height}: set the camera as it was, or teach anew"
                )

    def _check_graph(self) -> None:
        manifest = self.manifest
        inputs = {item.name: item.type for item in self._session.get_inputs()}
        outputs = {item.name: item.type for item in self._session.get_outputs()}
        if inputs != {manifest.input.name: "tensor(uint8)"}:
            raise ModelError(f"{self._where}: inputs {inputs} are not those of its manifest")
        for name in (manifest.outputs.score, manifest.outputs.heat):
            if outputs.get(name) != "tensor(float)":
                raise ModelError(f"{self._where}: output {name} is missing or no float")

    def _check_golden(self, golden: GoldenFrame, data: bytes) -> None:
        """Judge a golden frame again; this also warms the session up before the line runs."""
        try:
            unpacked = unpack_picture(data, name=golden.path, side=self.side)
        except PictureError as error:
            raise ModelError(f"{self._where}: golden frame {error}") from error
        rows, columns = unpacked.pixels.shape[:2]
        self._check_size(unpacked.size or (rows, columns), golden.path)
        score, heat = self.answer(unpacked.pixels, golden.path)
        for have, want in ((score, golden.score), (float(heat.max()), golden.heat_max)):
            if abs(have - want) > self.manifest.golden_tolerance * max(abs(want), 1e-6):
                raise ModelError(
                    f"{self._where}: golden frame {golden.path} gives {have:.6g} and not "
                    f"{want:.6g}: this machine does not run the model as it was taught"
                )


def _check_picture(pixels: NDArray[np.uint8], name: str) -> None:
    rgb = (3, 3)
    if pixels.dtype != np.uint8 or (pixels.ndim, pixels.shape[-1]) != rgb or 0 in pixels.shape:
        raise ModelError(
            f"{name}: {pixels.dtype} of shape {pixels.shape} is no RGB picture of uint8"
        )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
