"""A released model, run by ONNX Runtime on the CPU.

A model is let in only as its manifest describes it: every file by its digest, inputs
and outputs by name and type, and the golden frames by their scores, at every load. After
that an answer is a finite score for a picture of the right kind, or a `ModelError`.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Final

# ONNX Runtime reports to its maker as soon as it is imported. From a factory floor nothing
# leaves that is not on record, so this must stand before the import.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from qcnode.domain import Prediction
from qcnode.errors import ModelError, PictureError
from qcnode.manifest import load_manifest, read_verified
from qcnode.picture import decode_picture

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from qcnode.domain import Frame, Limits
    from qcnode.manifest import GoldenFrame, ModelManifest

# ONNX Runtime's errors have no ancestor of their own below Exception.
ORT_ERRORS: Final[tuple[type[Exception], ...]] = (
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoModel,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)


def open_session(model: bytes, *, threads: int = 1) -> ort.InferenceSession:
    """Return a session with its threads set on purpose.

    By default ONNX Runtime starts a thread per core and lets them spin while idle, which
    halves its own speed on one core and takes the other cores from everybody else.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class OnnxModel:
    """A model from a release folder, proven when loaded, and asked one picture at a time."""

    def __init__(self, folder: Path, *, threads: int = 1) -> None:
        """Load the release in `folder`, or raise `ManifestError` or `ModelError`."""
        self.manifest: ModelManifest = load_manifest(folder)
        contents = read_verified(folder, self.manifest)
        self._where = folder / self.manifest.model
        try:
            self._session = open_session(contents[self.manifest.model], threads=threads)
        except ORT_ERRORS as error:
            raise ModelError(f"{self._where}: no model that runs here ({_line(error)})") from error
        self._check_graph()
        if not self.manifest.golden:
            raise ModelError(f"{folder}: no golden frame to prove the model by: teach it anew")
        for golden in self.manifest.golden:
            self._check_golden(golden, contents[golden.path])

    @property
    def version(self) -> str:
        """Name and digest of what judges, as it goes on record."""
        return self.manifest.version

    @property
    def limits(self) -> Limits:
        """The limits this model was released with."""
        return self.manifest.limits

    def predict(self, frame: Frame) -> Prediction:
        """Return the score, or raise `ModelError`; never a number that is no score."""
        score, heat = self._run(frame.pixels, frame.name)
        return Prediction(score=score, model=self.version, heat=heat)

    def _run(self, pixels: NDArray[np.uint8], name: str) -> tuple[float, NDArray[np.float32]]:
        self._check_picture(pixels, name)
        outputs = self.manifest.outputs
        try:
            score, heat = self._session.run(
                [outputs.score, outputs.heat], {self.manifest.input.name: pixels}
            )
        except ORT_ERRORS as error:
            raise ModelError(f"{name}: the model failed ({_line(error)})") from error
        score, heat = np.asarray(score), np.asarray(heat)
        if score.size != 1 or heat.shape != (outputs.heat_rows, outputs.heat_columns):
            raise ModelError(f"{name}: the model answered in shapes {score.shape} and {heat.shape}")
        value = float(score.reshape(()))
        if not math.isfinite(value) or not np.isfinite(heat).all():
            raise ModelError(f"{name}: the model's answer is not a finite number")
        return value, heat

    def _check_picture(self, pixels: NDArray[np.uint8], name: str) -> None:
        rgb = (3, 3)
        if pixels.dtype != np.uint8 or (pixels.ndim, pixels.shape[-1]) != rgb or 0 in pixels.shape:
            raise ModelError(
                f"{name}: {pixels.dtype} of shape {pixels.shape} is no RGB picture of uint8"
            )
        expected = self.manifest.input
        for have, want in zip(pixels.shape, (expected.height, expected.width), strict=False):
            if want is not None and have != want:
                raise ModelError(
                    f"{name}: {pixels.shape[1]}x{pixels.shape[0]} pixels, taught on "
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
            pixels = decode_picture(data, name=golden.path)
        except PictureError as error:
            raise ModelError(f"{self._where}: golden frame {error}") from error
        score, heat = self._run(pixels, golden.path)
        for have, want in ((score, golden.score), (float(heat.max()), golden.heat_max)):
            if abs(have - want) > self.manifest.golden_tolerance * max(abs(want), 1e-6):
                raise ModelError(
                    f"{self._where}: golden frame {golden.path} gives {have:.6g} and not "
                    f"{want:.6g}: this machine does not run the model as it was taught"
                )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
