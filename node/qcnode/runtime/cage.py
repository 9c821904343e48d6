"""A model is tried out in a process of its own before the node's own process touches it.

A file may crash the loader, never return, take all memory or answer nonsense. It does so
here, in a child with limits on memory, processor time, files and waiting, without the
node's environment and at low priority; the node learns it as a `ModelError` of one line.
What passed is loaded again by the node from the same bytes: a release by its digests.

What this does not stop: a model that behaves on its golden frames and not on another
picture. The line's deadline and `Slot` are for that.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from qcnode.errors import ManifestError, ModelError
from qcnode.manifest import load_manifest, read_verified

MIB: Final = 1024 * 1024
_SAID_MAX: Final = MIB
_PASSED_ON: Final = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR")
_NICE: Final = 10
_FILES_MAX: Final = 64
_PR_SET_PDEATHSIG: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Cage:
    """What a model may use while it is tried out."""

    memory_bytes: int = 3072 * MIB
    cpu_s: int = 60
    wait_s: float = 120.0


CAGE: Final = Cage()


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """One input or output of a graph: a size that is not fixed is None."""

    name: str
    type: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What a model says of itself when it is loaded, and what it answers to mid-grey."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    """With the shapes the answer had."""
    metadata: dict[str, str]
    producer: str
    lowest: tuple[float, ...]
    highest: tuple[float, ...]


def try_release(folder: Path, *, threads: int = 1, cage: Cage = CAGE) -> None:
    """Load a release and judge its golden frames, in a child; raises `QcError` of one line."""
    # Read here first: links, sizes and digests are told by their own names.
    read_verified(folder, load_manifest(folder))
    _run({"release": str(folder.resolve()), "threads": threads}, name=str(folder), cage=cage)


def try_model(model: bytes, *, name: str, size: tuple[int, int], cage: Cage = CAGE) -> Signature:
    """Load a foreign model and ask it once, in a child; `size` stands for free sizes."""
    with tempfile.TemporaryDirectory(prefix="qcnode-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model)
        said = _run({"model": str(path), "size": size}, name=name, cage=cage)
    return Signature(
        inputs=_ports(said["inputs"]),
        outputs=_ports(said["outputs"]),
        metadata=said["metadata"],
        producer=said["producer"],
        lowest=tuple(said["lowest"]),
        highest=tuple(said["highest"]),
    )


def _ports(said: list[dict[str, Any]]) -> tuple[Port, ...]:
    return tuple(
        Port(name=one["name"], type=one["type"], shape=tuple(one["shape"])) for one in said
    )


def _run(job: dict[str, Any], *, name: str, cage: Cage) -> dict[str, Any]:
    limits = {"memory_bytes": cage.memory_bytes, "cpu_s": cage.cpu_s}
    # To files and not to pipes: what the child may write has a limit, too.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = subprocess.Popen(  # noqa: S603  # our own interpreter and module
            [sys.executable, "-I", "-m", "qcnode.runtime.cage", json.dumps(job | limits)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env={key: os.environ[key] for key in _PASSED_ON if key in os.environ},
            start_new_session=True,
        )
        try:
            code = child.wait(cage.wait_s)
        except subprocess.TimeoutExpired:
            raise ModelError(
                f"{name}: no answer within {cage.wait_s:g} s of trying it out: not let in"
            ) from None
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        out.seek(0)
        err.seek(0)
        said, complaint = out.read(_SAID_MAX), err.read(_SAID_MAX)
    if code < 0:
        raise ModelError(f"{name}: {_by_signal(-code, cage)}: not let in")
    try:
        answer: dict[str, Any] = json.loads(said)
    except ValueError:
        last = complaint.decode(errors="replace").strip().rpartition("\n")[2]
        raise ModelError(f"{name}: trying it out failed ({last:.200}): not let in") from None
    if "error" in answer:
        kind = ManifestError if answer["kind"] == "ManifestError" else ModelError
        raise kind(answer["error"])
    return answer


def _by_signal(number: int, cage: Cage) -> str:
    if number == signal.SIGXCPU or (number == signal.SIGKILL and cage.cpu_s):
        return f"took more than {cage.cpu_s} s of processor time when it was tried out"
    if number == signal.SIGXFSZ:
        return "wrote a file when it was tried out"
    return f"brought the process down that tried it out ({signal.Signals(number).name})"


# -- in the child ----------------------------------------------------------------------


def main() -> None:
    """Do the one job given as JSON, within its limits, and say how it went."""
    job = json.loads(sys.argv[1])
    confine(memory_bytes=job["memory_bytes"], cpu_s=job["cpu_s"])
    # From here on the limits hold, also for loading the libraries.
    from qcnode.errors import QcError  # noqa: PLC0415
    from qcnode.runtime.session import ORT_ERRORS  # noqa: PLC0415

    try:
        answer = _release(job) if "release" in job else _model(job)
    except QcError as error:
        answer = {"kind": type(error).__name__, "error": str(error)}
    except ORT_ERRORS as error:
        words = " ".join(str(error).split())[:200]
        answer = {"kind": "ModelError", "error": f"this model does not run here ({words})"}
    except MemoryError:
        answer = {"kind": "ModelError", "error": "this model takes too much memory"}
    sys.stdout.write(json.dumps(answer))
    sys.stdout.flush()
    # What a model left behind is not taken down in order: that, too, could go wrong.
    os._exit(0)


def confine(*, memory_bytes: int, cpu_s: int) -> None:
    """Limit this process for good."""
    for what, most in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, _SAID_MAX),
        (resource.RLIMIT_NOFILE, _FILES_MAX),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most + (what == resource.RLIMIT_CPU)))
    os.nice(_NICE)
    # Whoever asked may be gone before there is an answer: then nobody needs one.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _release(job: dict[str, Any]) -> dict[str, Any]:
    from qcnode.runtime.onnx import OnnxModel  # noqa: PLC0415

    return {"version": OnnxModel(Path(job["release"]), threads=job["threads"]).version}


def _model(job: dict[str, Any]) -> dict[str, Any]:
    import numpy as np  # noqa: PLC0415

    from qcnode.runtime.session import open_session  # noqa: PLC0415

    session = open_session(Path(job["model"]).read_bytes())
    about = session.get_modelmeta()
    height, width = job["size"]
    feed = {}
    for item in session.get_inputs():
        kind = NUMPY_TYPES.get(item.type)
        if kind is None:
            raise ModelError(f"input {item.name} of {item.type} takes no picture")
        shape = _concrete(item.shape, height, width)
        feed[item.name] = np.full(shape, 127 if kind == "uint8" else 0.5, kind)
    answers = session.run(None, feed)
    return {
        "inputs": [
            {"name": item.name, "type": item.type, "shape": _sizes(item.shape)}
            for item in session.get_inputs()
        ],
        "outputs": [
            {"name": item.name, "type": item.type, "shape": list(np.shape(answer))}
            for item, answer in zip(session.get_outputs(), answers, strict=True)
        ],
        "lowest": [_edge(np.min, answer) for answer in answers],
        "highest": [_edge(np.max, answer) for answer in answers],
        "metadata": dict(about.custom_metadata_map),
        "producer": f"{about.producer_name} {about.description}".strip(),
    }


NUMPY_TYPES: Final = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(uint8)": "uint8",
}


def _sizes(shape: list[Any]) -> list[int | None]:
    return [size if isinstance(size, int) and size > 0 else None for size in shape]


def _concrete(shape: list[Any], height: int, width: int) -> list[int]:
    """Fill free sizes: of four, the first is the batch and 3 or 1 the channels."""
    sizes = _sizes(shape)
    if len(sizes) != 4:  # noqa: PLR2004  # batch, and a picture
        raise ModelError(f"an input of {len(sizes)} dimensions takes no picture: export it with 4")
    last = sizes[3] in (1, 3)
    free = (1, height, width, 3) if last else (1, 3, height, width)
    return [want if have is None else have for have, want in zip(sizes, free, strict=True)]


def _edge(pick: Any, answer: Any) -> float:
    import numpy as np  # noqa: PLC0415

    values = np.asarray(answer)
    if values.size == 0 or values.dtype.kind not in "fiub":
        return 0.0
    edge = float(pick(values))
    return edge if np.isfinite(edge) else 0.0


if __name__ == "__main__":
    main()
