"""Logs of a thousand nodes that are killed on purpose tell nobody anything."""

import contextlib
import logging

import structlog


@contextlib.contextmanager
def quiet():
    """Let no log line through, and put everything back afterwards."""
    before = structlog.get_config()
    level = logging.root.manager.disable
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        structlog.configure(**before)
        logging.disable(level)
