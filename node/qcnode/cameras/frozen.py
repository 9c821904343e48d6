"""A camera that keeps showing the very same pixels is frozen and never passes a part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from qcnode.errors import CameraError

if TYPE_CHECKING:
    from numpy.typing import NDArray

FROZEN_FROM: Final = 3
"""So many times the very same pixels for different parts are a frozen camera."""


class Frozen:
    """Looks at every picture of one camera: light and sensor never give two alike."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._last: NDArray[np.uint8] | None = None
        self._repeats = 0

    def refuse(self, pixels: NDArray[np.uint8]) -> None:
        """Raise `CameraError` when this picture is the one of the parts before."""
        same = self._last is not None and np.array_equal(self._last, pixels)
        self._repeats = self._repeats + 1 if same else 1
        self._last = pixels
        if self._repeats >= FROZEN_FROM:
            raise CameraError(
                f"{self._name}: the same picture for {self._repeats} parts: the camera is"
                " frozen, restart it"
            )
