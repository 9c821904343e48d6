"""A real HTTP server on loopback that answers as a test says, bytes and all."""

from __future__ import annotations

import json
import socketserver
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator


@dataclass(frozen=True)
class Seen:
    """One request, as it came in."""

    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class Loopback:
    """The server: where it is, and what it was asked."""

    base_url: str
    asked: list[Seen] = field(default_factory=list)


class _Server(socketserver.ThreadingMixIn, HTTPServer):
    daemon_threads = True
    # What a client that went away leaves behind is no news.
    handle_error = lambda *_: None  # noqa: E731


@contextmanager
def loopback(
    answer: Callable[[Seen], tuple[int, Any]], *, tls: ssl.SSLContext | None = None
) -> Iterator[Loopback]:
    """Serve `answer`, which returns a status and what is sent as JSON (or bytes as they are)."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:  # as http.server calls it
            length = int(self.headers.get("content-length", 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            seen = Seen(self.path, headers, json.loads(self.rfile.read(length)))
            served.asked.append(seen)
            status, said = answer(seen)
            body = said if isinstance(said, bytes) else json.dumps(said).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = _Server(("127.0.0.1", 0), Handler)
    scheme = "http"
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        scheme = "https"
    served = Loopback(f"{scheme}://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
