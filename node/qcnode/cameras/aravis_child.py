"""One camera in a process of its own, which the node starts, asks by a pipe, and may kill.

`python -m qcnode.cameras.aravis_child JOB` opens the camera, sets what a trigger depends on
(whoever used it before may have left anything) and then the features of the job, reads each
back, and answers every line on standard input (a trigger's number) with one message on
standard output: a picture, or in words why there is none. A picture with missing packets
is none, nor is one that came beside another: which of them is the part's, nobody knows. When
the camera no longer answers, the process ends; the node starts another. The limit on memory
is for this process alone, so that a leak ends a camera and not the node.
"""

from __future__ import annotations

import ctypes
import json
import resource
import select
import signal
import struct
import sys
from dataclasses import dataclass
from typing import Any, Final

from qcnode.cameras.aravis import STATUS, SUCCESS, Device, Taken
from qcnode.errors import CameraError

HEADER: Final = struct.Struct("<cII")
"""What it is, and how many bytes of JSON and of pixels follow."""
READY, PICTURE, NONE, END = b"R", b"P", b"N", b"E"
LOOK_S: Final = 1.0
"""So often an idle camera is asked whether it is there."""
SOFTWARE: Final = "Software"
FIRST: Final = (
    ("TriggerSelector", "FrameStart"),
    ("TriggerMode", "Off"),
    ("AcquisitionMode", "Continuous"),
)
CLOSE: Final = 1e-3
_PR_SET_PDEATHSIG: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Which camera, what is set in it, and what its process may use."""

    address: str
    trigger: str
    features: tuple[tuple[str, str], ...]
    memory_bytes: int
    timeout_ms: int


def main() -> None:
    """Serve one camera until standard input closes. The top of this process."""
    raw = json.loads(sys.argv[1])
    job = Job(**{**raw, "features": tuple((name, value) for name, value in raw["features"])})
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the node, which ends its child.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_AS, (job.memory_bytes, job.memory_bytes))
    try:
        _serve(job)
    except CameraError as error:
        _say(END, {"why": str(error)})
        sys.exit(1)
    except MemoryError:
        _say(END, {"why": f"its process needs more than {job.memory_bytes >> 20} MiB"})
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(0)  # The node has gone.


def _serve(job: Job) -> None:
    device = Device(job.address)
    read_back = _set_up(device, job)
    device.start()
    _say(READY, {"features": read_back})
    eyes = _Eyes(device, job)
    while True:
        readable, _, _ = select.select([sys.stdin], [], [], LOOK_S)
        if not readable:
            device.alive()
            continue
        line = sys.stdin.readline()
        if not line:
            return
        eyes.look(int(line))


class _Eyes:
    """The camera between triggers and pictures: one of each, or neither."""

    def __init__(self, device: Device, job: Job) -> None:
        self._device = device
        self._job = job

    def look(self, seq: int) -> None:
        """Answer one trigger."""
        software = self._job.trigger == SOFTWARE
        if software:
            stale = self._drain()
            if stale:
                # Somebody else fires this camera, or its trigger mode is off.
                self._none(seq, f"{stale} pictures that nobody asked for: who else triggers it?")
                return
            self._device.trigger()
        taken = self._device.next(self._job.timeout_ms * 1000)
        if taken is None:
            # The answer first: the gate does not wait until we know what is wrong.
            why = f"no picture within {self._job.timeout_ms} ms of the trigger"
            _say(NONE, {"seq": seq, "why": why, "busy": True})
            self._device.alive()
            self._restart()
            _say(READY, {})
        elif taken.status != SUCCESS:
            self._none(seq, f"damaged picture ({STATUS.get(taken.status, taken.status)})")
        elif not software and (more := self._drain()):
            self._none(seq, f"{more + 1} pictures for one trigger: which is the part's?")
        else:
            self._picture(seq, taken)

    def _drain(self) -> int:
        """Throw away what is there already, and say how much that was."""
        found = 0
        while self._device.next(0) is not None:
            found += 1
        return found

    def _restart(self) -> None:
        """A picture that comes too late must not be taken for the next part's."""
        self._device.stop()
        self._device.start()

    def _none(self, seq: int, why: str) -> None:
        _say(NONE, {"seq": seq, "why": why})

    def _picture(self, seq: int, taken: Taken) -> None:
        about = {
            "seq": seq,
            "frame_id": taken.frame_id,
            "width": taken.width,
            "height": taken.height,
            "format": taken.pixel_format,
        }
        _say(PICTURE, about, taken.data)


def _set_up(device: Device, job: Job) -> dict[str, str]:
    """Set all features in order, and return what each was read back as."""
    last = (("TriggerSource", job.trigger), ("TriggerMode", "On"))
    read_back = {}
    for name, value in (*FIRST, *job.features, *last):
        read_back[name] = device.set(name, value)
        if not _alike(read_back[name], value):
            raise CameraError(
                f"{name} was set to {value} and reads back as {read_back[name]}: give a value"
                " that the camera takes"
            )
    return read_back


def _alike(read: str, wanted: str) -> bool:
    try:
        return abs(float(read) - float(wanted)) <= CLOSE * max(1.0, abs(float(wanted)))
    except ValueError:
        return read.casefold() == wanted.casefold()


def _say(kind: bytes, about: dict[str, Any], data: bytes = b"") -> None:
    words = json.dumps(about).encode()
    out = sys.stdout.buffer
    out.write(HEADER.pack(kind, len(words), len(data)))
    out.write(words)
    out.write(data)
    out.flush()


if __name__ == "__main__":
    main()
