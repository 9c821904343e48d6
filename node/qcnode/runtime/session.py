"""Sessions of ONNX Runtime, for each provider the one way it is opened here.

`Engine` says what runs a model; `open_runner` gives something that takes one picture and
returns the named outputs, warmed by nothing but its own set-up. CPU in FP32 is the engine
every other is compared with. Nothing here decides which engine is used: `tuning` does.

No file is opened on behalf of a model: it comes as bytes, and weights that lie outside it
are looked for where nothing is.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

# ONNX Runtime reports to its maker as soon as it is imported. From a factory floor nothing
# leaves that is not on record, so this must stand before the import.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from qcnode.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

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

_NOWHERE: Final = "/nonexistent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What runs a model: a provider and the precision it may work in."""

    name: str
    provider: str
    options: tuple[tuple[str, str], ...] = ()
    graph: bool = False
    """Whether a recorded CUDA graph is replayed for each picture."""


CPU: Final = Engine(name="cpu", provider="CPUExecutionProvider")
ENGINES: Final = (
    CPU,
    Engine(
        name="openvino",
        provider="OpenVINOExecutionProvider",
        options=(("INFERENCE_PRECISION_HINT", "f32"),),
    ),
    Engine(
        name="openvino-bf16",
        provider="OpenVINOExecutionProvider",
        options=(("INFERENCE_PRECISION_HINT", "bf16"),),
    ),
    Engine(name="cuda", provider="CUDAExecutionProvider"),
    Engine(name="cuda-graph", provider="CUDAExecutionProvider", graph=True),
    Engine(name="tensorrt", provider="TensorrtExecutionProvider"),
    Engine(
        name="tensorrt-fp16",
        provider="TensorrtExecutionProvider",
        options=(("trt_fp16_enable", "1"),),
    ),
)


def engines_here() -> tuple[Engine, ...]:
    """Return the engines this installation of ONNX Runtime offers; the CPU is always first."""
    offered = set(ort.get_available_providers())
    return tuple(engine for engine in ENGINES if engine.provider in offered)


class Runner(Protocol):
    """Runs one model, one picture at a time, on the thread that asks."""

    def run(self, pixels: NDArray[np.uint8]) -> list[NDArray[Any]]:
        """Return the named outputs; raises one of `ORT_ERRORS`."""

    def interrupt(self) -> None:
        """End the run in hand with one of `ORT_ERRORS`; any thread may ask."""


def open_session(model: bytes, *, threads: int = 1, engine: Engine = CPU) -> ort.InferenceSession:
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
    # A model from bytes may otherwise name files of the working directory as its weights.
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", _NOWHERE
    )
    options.log_severity_level = 3
    chosen: list[Any] = [(engine.provider, _provider_options(engine, threads=threads))]
    if engine.provider == "TensorrtExecutionProvider":
        chosen.append(("CUDAExecutionProvider", _cuda_options(graph=False)))
    if engine.provider != CPU.provider:
        chosen.append(CPU.provider)
    if engine.provider not in ort.get_available_providers():
        raise ModelError(
            f"engine {engine.name}: this ONNX Runtime has no {engine.provider}: install its variant"
        )
    session = ort.InferenceSession(model, options, providers=chosen)
    session.disable_fallback()
    if session.get_providers()[0] != engine.provider:
        raise ModelError(
            f"engine {engine.name}: ONNX Runtime took {session.get_providers()[0]} instead:"
            " its libraries are missing on this machine"
        )
    return session


def open_runner(
    session: ort.InferenceSession, engine: Engine, *, input_name: str, outputs: Sequence[str]
) -> Runner:
    """Return what runs `session` the way `engine` is run fastest."""
    if engine.provider in ("CUDAExecutionProvider", "TensorrtExecutionProvider"):
        return _DeviceRunner(session, input_name, list(outputs))
    return _HostRunner(session, input_name, list(outputs))


class _HostRunner:
    def __init__(self, session: ort.InferenceSession, input_name: str, outputs: list[str]) -> None:
        self._session = session
        self._input = input_name
        self._outputs = outputs
        self._options = ort.RunOptions()

    def run(self, pixels: NDArray[np.uint8]) -> list[NDArray[Any]]:
        self._options.terminate = False
        answer = self._session.run(self._outputs, {self._input: pixels}, self._options)
        return [np.asarray(value) for value in answer]

    def interrupt(self) -> None:
        self._options.terminate = True


class _DeviceRunner:
    """Keeps one input and one set of outputs on the device, for one shape.

    A CUDA graph replays the addresses it was recorded with, so they stay the same for the
    life of the runner. Another shape of picture is another recording, which would be a
    pause on the line: it is refused instead.
    """

    def __init__(self, session: ort.InferenceSession, input_name: str, outputs: list[str]) -> None:
        self._session = session
        self._input = input_name
        self._options = ort.RunOptions()
        self._binding = session.io_binding()
        self._picture: Any = None
        self._shape: tuple[int, ...] = ()
        shapes = {item.name: item.shape for item in session.get_outputs()}
        for name in outputs:
            if not all(isinstance(size, int) for size in shapes[name]):
                raise ModelError(f"output {name} has no fixed shape, and a device needs one")
            value = np.zeros(shapes[name], np.float32)
            self._binding.bind_ortvalue_output(
                name, ort.OrtValue.ortvalue_from_numpy(value, "cuda", 0)
            )

    def run(self, pixels: NDArray[np.uint8]) -> list[NDArray[Any]]:
        pixels = np.ascontiguousarray(pixels)
        if self._picture is None:
            self._picture = ort.OrtValue.ortvalue_from_numpy(pixels, "cuda", 0)
            self._binding.bind_ortvalue_input(self._input, self._picture)
            self._shape = pixels.shape
        elif pixels.shape != self._shape:
            raise ModelError(
                f"a picture of {pixels.shape[1]}x{pixels.shape[0]} pixels, and the device was set"
                f" up for {self._shape[1]}x{self._shape[0]}: one camera format per node"
            )
        self._options.terminate = False
        self._picture.update_inplace(pixels)
        self._session.run_with_iobinding(self._binding, self._options)
        return [np.asarray(value) for value in self._binding.copy_outputs_to_cpu()]

    def interrupt(self) -> None:
        self._options.terminate = True


def _provider_options(engine: Engine, *, threads: int) -> dict[str, str]:
    if engine.provider == "OpenVINOExecutionProvider":
        device = {
            **dict(engine.options),
            "INFERENCE_NUM_THREADS": str(threads),
            "NUM_STREAMS": "1",
            # Pinned, its worker shares a core with whatever runs there already.
            "ENABLE_CPU_PINNING": "NO",
        }
        return {"device_type": "CPU", "load_config": json.dumps({"CPU": device})}
    if engine.provider == "CUDAExecutionProvider":
        return _cuda_options(graph=engine.graph)
    if engine.provider == "TensorrtExecutionProvider":
        return {"device_id": "0", **dict(engine.options)}
    return {}


def _cuda_options(*, graph: bool) -> dict[str, str]:
    return {
        "device_id": "0",
        # The exhaustive search takes seconds for every new shape and is no faster after it.
        "cudnn_conv_algo_search": "HEURISTIC",
        "do_copy_in_default_stream": "1",
        # TF32 keeps 10 bits of the fraction: what is compared with FP32 should be FP32.
        "use_tf32": "0",
        "enable_cuda_graph": "1" if graph else "0",
    }
