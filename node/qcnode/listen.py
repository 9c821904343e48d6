"""Taking a TCP port before anything runs, so that a port in use is one line at the start.

Panel, billing server and scripted provider all begin here.
"""

from __future__ import annotations

import socket

from qcnode.errors import SettingsError

BACKLOG = 128


def listen(host: str, port: int, *, fix: str = "set another port") -> socket.socket:
    """Return a socket that listens at `host`:`port` (0: any free one).

    Who comes early waits until the server runs. Raises `SettingsError` with `fix` when
    the port cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise SettingsError(
            f"{host}:{port}: cannot listen on port {port} ({error.strerror or error}); {fix}"
        ) from error
