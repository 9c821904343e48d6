"""A GigE Vision camera in software that shows our pictures: for the demo and the tests.

It is the fake camera of Aravis (real discovery, control and stream protocols, on the loopback
interface) with its test pattern replaced. As any camera it knows nothing of parts: `picture`
is asked for what lies in front of it, when it is triggered.
"""

from __future__ import annotations

import ctypes
from ctypes import CFUNCTYPE, POINTER, byref, c_bool, c_char_p, c_size_t, c_uint32, c_void_p
from typing import TYPE_CHECKING

from qcnode.cameras.aravis import Library
from qcnode.errors import CameraError

if TYPE_CHECKING:
    from collections.abc import Callable

_FILL = CFUNCTYPE(None, c_void_p, c_void_p, c_uint32, c_uint32, c_uint32)


class FakeGigeCamera:
    """Serves on `interface` until `close`; `picture` returns as many bytes as a picture has."""

    def __init__(self, interface: str, *, serial: str, picture: Callable[[], bytes]) -> None:
        self._lib = Library()
        self._picture = picture
        self._camera = self._lib.call(
            "arv_gv_fake_camera_new",
            c_void_p,
            (c_char_p, interface.encode()),
            (c_char_p, serial.encode()),
        )
        own = (c_void_p, self._camera)
        if not self._camera or not self._lib.call("arv_gv_fake_camera_is_running", c_bool, own):
            raise CameraError(
                f"a fake camera cannot serve on {interface}: does another one run there?"
            )
        self._inside = inside = self._lib.call("arv_gv_fake_camera_get_fake_camera", c_void_p, own)
        self._fill = _FILL(self._show)
        self._lib.call(
            "arv_fake_camera_set_fill_pattern",
            None,
            (c_void_p, inside),
            (_FILL, self._fill),
            (c_void_p, None),
        )

    def close(self) -> None:
        """Be a camera no more."""
        self._lib.drop(self._camera)
        self._camera = None

    def _show(self, buffer: int, _data: int, _exposure: int, _gain: int, _format: int) -> None:
        """Fill the camera's next picture; called in a thread of the library."""
        size = c_size_t()  # What was received so far, which here is nothing.
        at = self._lib.call(
            "arv_buffer_get_data",
            c_void_p,
            (c_void_p, buffer),
            (POINTER(c_size_t), byref(size)),
        )
        room = self._lib.call("arv_fake_camera_get_payload", c_size_t, (c_void_p, self._inside))
        picture = self._picture()
        ctypes.memmove(at, picture, min(int(room), len(picture)))
