"""What is used of libaravis, the free library for GigE Vision and USB3 Vision cameras.

Called by ctypes, so that any Python can use the system's library (Debian: libaravis-0.8-0)
without bindings built for that Python. Errors of the library are raised as `CameraError`
with its own words. Everything here belongs in a process of its own (`aravis_child`): a
library that crashes or leaks must not take the node along.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_bool, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from typing import Any, Final

from qcnode.errors import CameraError, SettingsError

LIBRARY: Final = "libaravis-0.8.so.0"
PACKAGE: Final = "libaravis-0.8-0"
SUCCESS: Final = 0
STATUS: Final = {
    0: "success",
    1: "cleared",
    2: "packets did not come in time",
    3: "missing packets",
    4: "wrong packet id",
    5: "size mismatch",
    6: "filling",
    7: "aborted",
    8: "payload not supported",
}
_CONTROL: Final = 0x0A00
"""The register of GigE Vision that says who controls a camera; reading it shows it is there."""


class _GError(ctypes.Structure):
    _fields_ = (("domain", c_uint32), ("code", c_int), ("message", c_char_p))


_Error = POINTER(_GError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """One buffer as the camera filled it; only a `status` of SUCCESS is a whole picture."""

    status: int
    frame_id: int
    width: int
    height: int
    pixel_format: int
    data: bytes


class Library:
    """libaravis, with the functions that are used of it."""

    def __init__(self) -> None:
        try:
            self._lib = ctypes.CDLL(LIBRARY)
            self._gobject = ctypes.CDLL("libgobject-2.0.so.0")
            self._glib = ctypes.CDLL("libglib-2.0.so.0")
        except OSError as error:
            raise CameraError(
                f"{LIBRARY} is missing ({error}): apt-get install {PACKAGE}"
            ) from error
        self._glib.g_error_free.argtypes = [c_void_p]
        self._gobject.g_object_unref.argtypes = [c_void_p]

    def call(self, name: str, result: Any, *arguments: tuple[Any, Any]) -> Any:
        """Call a function that cannot fail; each argument comes with its type."""
        function = getattr(self._lib, name)
        function.restype = result
        function.argtypes = [kind for kind, _value in arguments]
        return function(*[value for _kind, value in arguments])

    def ask(self, name: str, result: Any, *arguments: tuple[Any, Any]) -> Any:
        """Call a function that may fail, and raise what it says."""
        error = _Error()
        answer = self.call(name, result, *arguments, (POINTER(_Error), byref(error)))
        if error:
            words = (error.contents.message or b"").decode("utf-8", "replace")
            self._glib.g_error_free(ctypes.cast(error, c_void_p))
            raise CameraError(f"{name.removeprefix('arv_')}: {words}")
        return answer

    def drop(self, thing: int | None) -> None:
        """Give an object of the library back."""
        if thing:
            self._gobject.g_object_unref(thing)


def check_library() -> None:
    """Raise `SettingsError` naming the package where the library is missing."""
    try:
        Library()
    except CameraError as error:
        raise SettingsError(f'camera.kind = "gige": {error}') from error


class Device:
    """One camera, opened for as long as this object is used; it must not be shared."""

    def __init__(self, address: str | None, *, buffers: int = 4) -> None:
        self._lib = Library()
        name = None if address is None else address.encode()
        self._camera = self._lib.ask("arv_camera_new", c_void_p, (c_char_p, name))
        if not self._camera:
            raise CameraError(f"no camera at {address}: check its cable, power and address")
        self._device = self._lib.call("arv_camera_get_device", c_void_p, self._own)
        self._buffers = buffers
        self._stream: int | None = None

    @property
    def _own(self) -> tuple[Any, Any]:
        return c_void_p, self._camera

    def set(self, feature: str, value: str) -> str:
        """Set a feature, and return what it then is, by the camera's own account."""
        node = self._feature(feature)
        self._lib.ask(
            "arv_gc_feature_node_set_value_from_string",
            None,
            (c_void_p, node),
            (c_char_p, value.encode()),
        )
        return self.get(feature)

    def get(self, feature: str) -> str:
        """Return what a feature is."""
        read = self._lib.ask(
            "arv_gc_feature_node_get_value_as_string", c_char_p, (c_void_p, self._feature(feature))
        )
        return "" if read is None else str(read.decode("utf-8", "replace"))

    def _feature(self, name: str) -> int:
        node = self._lib.call(
            "arv_device_get_feature", c_void_p, (c_void_p, self._device), (c_char_p, name.encode())
        )
        if not node:
            raise CameraError(f"the camera has no feature {name}: take it out of the file")
        return int(node)

    def start(self) -> None:
        """Begin to take pictures into buffers of this process."""
        payload = self._lib.ask("arv_camera_get_payload", c_uint32, self._own)
        nothing = (c_void_p, None)
        self._stream = self._lib.ask(
            "arv_camera_create_stream", c_void_p, self._own, nothing, nothing
        )
        if not self._stream:
            raise CameraError("the camera gives no stream: does another program use it?")
        for _ in range(self._buffers):
            self._push(self._lib.call("arv_buffer_new_allocate", c_void_p, (c_size_t, payload)))
        self._lib.ask("arv_camera_start_acquisition", None, self._own)

    def trigger(self) -> None:
        """Fire the software trigger."""
        self._lib.ask("arv_camera_software_trigger", None, self._own)

    def next(self, wait_us: int) -> Taken | None:
        """Return the next picture, whole or not; None when none came in time."""
        stream = (c_void_p, self._stream)
        buffer = self._lib.call(
            "arv_stream_timeout_pop_buffer", c_void_p, stream, (c_uint64, wait_us)
        )
        if not buffer:
            return None
        try:
            return self._read(buffer)
        finally:
            self._push(buffer)

    def stop(self) -> None:
        """Take no more pictures; what was under way is forgotten with the stream."""
        try:
            self._lib.ask("arv_camera_stop_acquisition", None, self._own)
        finally:
            self._lib.drop(self._stream)
            self._stream = None

    def alive(self) -> None:
        """Raise `CameraError` when the camera does not answer, or is somebody else's."""
        value = c_uint32()
        self._lib.ask(
            "arv_device_read_register",
            c_bool,
            (c_void_p, self._device),
            (c_uint64, _CONTROL),
            (POINTER(c_uint32), byref(value)),
        )
        if not value.value:
            raise CameraError("another program has taken the camera over")

    def _push(self, buffer: int) -> None:
        stream = (c_void_p, self._stream)
        self._lib.call("arv_stream_push_buffer", None, stream, (c_void_p, buffer))

    def _read(self, buffer: int) -> Taken:
        own = (c_void_p, buffer)
        status = int(self._lib.call("arv_buffer_get_status", c_int, own))
        frame_id = int(self._lib.call("arv_buffer_get_frame_id", c_uint64, own))
        if status != SUCCESS:
            return Taken(
                status=status, frame_id=frame_id, width=0, height=0, pixel_format=0, data=b""
            )
        size = c_size_t()
        data = self._lib.call(
            "arv_buffer_get_data", c_void_p, own, (POINTER(c_size_t), byref(size))
        )
        return Taken(
            status=status,
            frame_id=frame_id,
            width=int(self._lib.call("arv_buffer_get_image_width", c_int, own)),
            height=int(self._lib.call("arv_buffer_get_image_height", c_int, own)),
            pixel_format=int(self._lib.call("arv_buffer_get_image_pixel_format", c_uint32, own)),
            data=ctypes.string_at(data, size.value),
        )
