"""How long a process takes to its first verdict, and how much memory, next to a bare script.

Both are new processes that load the same graph, decode one picture and judge it once. The
bare one imports ONNX Runtime, NumPy and OpenCV and does nothing else.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from qcnode.bench.measure import Result
from qcnode.errors import QcError
from qcnode.manifest import load_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator

_TIMEOUT_S = 120.0

# Not `ru_maxrss`, which counts what the process was before it became this one.
_TELL = """
from pathlib import Path
status = Path("/proc/self/status").read_text()
print(status.partition("VmHWM:")[2].split()[0])
"""

_OURS = (
    """
import sys
from pathlib import Path
from datetime import UTC, datetime
from qcnode.domain import Frame
from qcnode.picture import unpack_picture
from qcnode.policy import judge
from qcnode.runtime.onnx import OnnxModel
model = OnnxModel(Path(sys.argv[1]).parent)
encoded = Path(sys.argv[2]).read_bytes()
seen = unpack_picture(encoded, name="first", side=model.side)
frame = Frame(
    id="1",
    part_id="1",
    camera="1",
    name="1",
    captured_at=datetime.now(UTC),
    pixels=seen.pixels,
    encoded=encoded,
    size=seen.size,
)
judge(model.predict(frame), model.limits)
"""
    + _TELL
)

_BARE = (
    """
import os
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import sys
import cv2, numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
pixels = cv2.imdecode(np.fromfile(sys.argv[2], np.uint8), cv2.IMREAD_COLOR_RGB)
session.run(None, {session.get_inputs()[0].name: pixels})
"""
    + _TELL
)


def start_results(release: Path, picture: bytes, *, rounds: int) -> Iterator[Result]:
    """Measure start to first verdict of the model in `release` on an encoded picture."""
    model = release / load_manifest(release).model
    times: list[float] = []
    memory: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        seen = Path(folder) / "picture.jpg"
        seen.write_bytes(picture)
        for number in range(rounds + 1):
            ours, bare = _run(_OURS, model, seen), _run(_BARE, model, seen)
            if number > 0:  # The first finds cold disk caches.
                times.append(ours[0] / bare[0])
                memory.append(ours[1] / bare[1])
    yield Result(
        name="start to first verdict over a bare ONNX Runtime script",
        values=tuple(times),
        aim=1.5,
        at_least=False,
        note=f"last {ours[0]:.2f} s",
    )
    yield Result(
        name="peak memory at first verdict over the same script",
        values=tuple(memory),
        aim=1.3,
        at_least=False,
        note=f"last {ours[1] / 1024:.0f} MiB",
    )


def _run(script: str, model: Path, picture: Path) -> tuple[float, float]:
    """Return the seconds and the peak KiB of a process that runs `script`."""
    start = time.perf_counter()
    done = subprocess.run(  # noqa: S603  # two scripts that stand above
        [sys.executable, "-c", script, str(model), str(picture)],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise QcError(f"{model}: a new process did not judge: {done.stderr.strip()[-300:]}")
    return seconds, float(done.stdout)
