"""The billing server as a process: built once, run until it is told to stop.

A listening address that others can reach needs a token. SIGTERM ends it within five
seconds; what the broker or a node has no receipt for by then comes again.
"""

from __future__ import annotations

import signal
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING

import structlog
import uvicorn

from qcbridge.billing.app import create_app
from qcbridge.billing.consumer import MqttConsumer
from qcbridge.billing.engine import Database
from qcbridge.billing.intake import Intake
from qcbridge.billing.keys import Trust
from qcbridge.billing.pool import StoreOptions, TakingPool
from qcbridge.billing.witness import key_path
from qcnode.errors import BillingError
from qcnode.listen import listen

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from datetime import datetime
    from pathlib import Path

    from qcbridge.billing.consumer import Broker

log = structlog.get_logger()

TOKEN_CHARS_MIN = 16
SHUTDOWN_TIMEOUT_S = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Where the books are, where to listen, and for whom."""

    url: str
    host: str
    port: int
    token: str | None = field(default=None, repr=False)
    broker: Broker | None = None
    key_file: Path | None = None
    enrol_first: bool = False
    workers: int = 1

    def __post_init__(self) -> None:
        if self.enrol_first and not _is_loopback(self.host):
            raise BillingError(
                f"--enrol-first believes every stranger, and {self.host} can be reached from"
                " outside: register the nodes with `qcnode billing node add`"
            )
        if self.token is None and not _is_loopback(self.host):
            raise BillingError(
                f"{self.host} can be reached from outside and no token is set: put one in"
                " QCNODE_BILLING_TOKEN or --token-file, or listen on 127.0.0.1"
            )
        if self.token is not None and len(self.token) < TOKEN_CHARS_MIN:
            raise BillingError(
                f"the token has {len(self.token)} characters: use {TOKEN_CHARS_MIN} at least"
            )


def run_server(
    options: ServerOptions, *, now: Callable[[], datetime], tell: Callable[[str], None]
) -> bool:
    """Serve until SIGTERM or SIGINT; say through `tell` where, and return whether all went well."""
    with ExitStack() as stack:
        listener = stack.enter_context(
            listen(options.host, options.port, fix="stop what is there, or choose another --port")
        )
        database = Database(options.url)
        stack.callback(database.close)
        database.migrate()
        making = StoreOptions(
            url=options.url,
            now=now,
            trust=Trust.FIRST if options.enrol_first else Trust.REGISTERED,
            key_file=key_path(database, options.key_file),
        )
        store = making.open_on(database)
        if options.enrol_first:
            log.warning(
                "whoever sends first in a node's name is believed: for a demo, and nothing else"
            )
        pool = _pool(options, making, database)
        if pool is not None:
            stack.callback(pool.close)
        intake = Intake(store, pool=pool)
        # Without a token, no web page may reach these books under a name of its own.
        hosts = ["*"] if options.token else ["localhost", "127.0.0.1", "[::1]", options.host]
        server = uvicorn.Server(
            uvicorn.Config(
                create_app(store, token=options.token, now=now, intake=intake, hosts=hosts),
                log_level="warning",
                access_log=False,
                server_header=False,
                limit_concurrency=64,
                timeout_keep_alive=15,
                timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S,
            )
        )
        died: list[str] = []

        def stop_for_death() -> None:
            died.append("mqtt")
            server.should_exit = True

        # uvicorn raises the signal again once it has shut down; by then it means nothing.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: None)
        if options.broker is not None:
            for broker in _shares(options.broker, 1 if pool is None else pool.workers):
                consumer = MqttConsumer(broker, intake, on_death=stop_for_death)
                stack.callback(consumer.stop)
                consumer.start()
        where = f"http://{_address(listener)}/"
        tell(f"billing listens at {where} and keeps its books in {database.name}")
        server.run(sockets=[listener])
    return not died


def _pool(options: ServerOptions, making: StoreOptions, database: Database) -> TakingPool | None:
    if options.workers == 1:
        return None
    if database.is_sqlite:
        raise BillingError(
            f"{options.workers} workers and SQLite, which one at a time writes: use PostgreSQL"
        )
    return TakingPool(making, workers=options.workers)


def _shares(broker: Broker, count: int) -> Iterator[Broker]:
    """Yield what each of several consumers connects as, so that the broker shares batches out."""
    if count == 1:
        yield broker
        return
    for number in range(1, count + 1):
        client_id = f"{broker.client_id}-{number}"
        yield replace(broker, client_id=client_id, share=broker.client_id)


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
