"""The scripted provider, started for a test on a port of its own and stopped after it."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qcbridge.providers.scripted import ScriptedSettings, build_server
from qcnode.listen import listen

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY = "key-of-the-test"


@dataclass(frozen=True)
class Scripted:
    base_url: str
    world: Path
    log: Path

    def parts(self, **truths: str) -> None:
        """Let the line trigger these parts; `_` in a name stands for `-`."""
        with self.world.open("a") as world:
            for seq, (part, truth) in enumerate(truths.items(), start=1):
                world.write(f"trigger {seq} {part.replace('_', '-')} {truth}\n")

    def requests(self) -> list[dict[str, Any]]:
        """Return the provider's own books."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@contextmanager
def scripted_provider(folder: Path, **changes: Any) -> Iterator[Scripted]:
    world, log = folder / "world.log", folder / "provider.log"
    settings = ScriptedSettings(
        **{"world": world, "log": log, "api_key": KEY, "accuracy": 1.0, "latency_ms": 1.0} | changes
    )
    sock = listen("127.0.0.1", 0)
    server = build_server(settings, now=lambda: 1_800_000_000.0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        yield Scripted(f"http://127.0.0.1:{sock.getsockname()[1]}", world, log)
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        assert not thread.is_alive()
