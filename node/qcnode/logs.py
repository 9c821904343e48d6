"""Logs as one JSON object a line on standard error, for machines to collect."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading

import structlog

_LOCK = threading.Lock()


def configure_logs(*, level: int = logging.INFO) -> None:
    """Set up structlog, and send what libraries log the same way."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=_StandardError,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processor=structlog.processors.JSONRenderer()
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(level, logging.WARNING))


class _StandardError:
    """Writes lines to whatever standard error is now; a log nobody reads stops no part."""

    def __init__(self, *_: object) -> None:
        self._lock = _LOCK

    def msg(self, message: str) -> None:
        """Write one line, or drop it."""
        with self._lock, contextlib.suppress(OSError, ValueError):
            print(message, file=sys.stderr, flush=True)  # noqa: T201  # this is where logs go

    debug = info = warning = error = critical = exception = log = msg
