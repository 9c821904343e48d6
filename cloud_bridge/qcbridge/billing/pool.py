"""Batches taken by several processes, so that more than one core works on them.

Reading and checking a batch keeps a core busy for as long as PostgreSQL needs to store it,
and one Python process uses one core. Each worker has a store of its own on the same
database; the row of a ledger, locked there, keeps two batches of it apart whoever takes
them. A worker ends with the process that started it, however that ends.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from qcbridge.billing.engine import Database, StoreUnavailableError
from qcbridge.billing.offers import BatchRefusedError, RefusalKind
from qcbridge.billing.store import BillingStore, Taken
from qcbridge.billing.taking import take_batch
from qcbridge.billing.witness import Witness, open_key
from qcnode.errors import BillingError
from qcnode.logs import configure_logs

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from pathlib import Path

    from qcbridge.billing.keys import Trust

log = structlog.get_logger()

TAKE_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """What a store is made of, in a form that another process can be given.

    `now` is a function of a module, which the other process can import.
    """

    url: str
    now: Callable[[], datetime]
    trust: Trust
    key_file: Path | None

    def open_on(self, database: Database) -> BillingStore:
        """Make the store on a database that is up to date."""
        return BillingStore(
            database,
            now=self.now,
            trust=self.trust,
            witness=None if self.key_file is None else Witness(open_key(self.key_file)),
        )


@dataclass(frozen=True, slots=True)
class _Refused:
    """A refusal on its way between processes."""

    kind: RefusalKind | None
    words: str
    away: bool = False


class TakingPool:
    """Some processes that take batches; any thread may call."""

    def __init__(self, options: StoreOptions, *, workers: int) -> None:
        self.workers = workers
        self._options = options
        self._turn = threading.Lock()
        self._closed = False
        self._pool = self._make()

    def take(self, raw: bytes, *, tenant: str | None, node: str | None) -> Taken:
        """Do what `take_batch` does, in one of the processes."""
        pool = self._pool
        try:
            answer = pool.submit(_take, raw, tenant, node).result(TAKE_TIMEOUT_S)
        except BrokenProcessPool as error:
            self._replace(pool)
            raise StoreUnavailableError(
                "a process that takes batches has died; another takes its place"
            ) from error
        except (TimeoutError, RuntimeError) as error:
            raise StoreUnavailableError(
                f"the processes that take batches do not answer: {error or 'too much to do'}"
            ) from error
        if isinstance(answer, Taken):
            return answer
        if answer.kind is not None:
            raise BatchRefusedError(answer.kind, answer.words)
        raise StoreUnavailableError(answer.words) if answer.away else BillingError(answer.words)

    def close(self) -> None:
        """End the processes when they have done what they are doing."""
        with self._turn:
            self._closed = True
        self._pool.shutdown(cancel_futures=True)

    def _make(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            self.workers,
            # Not forked: threads that hold locks are about.
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(self._options,),
        )

    def _replace(self, broken: ProcessPoolExecutor) -> None:
        """Make new processes, once for all that find the old ones dead."""
        with self._turn:
            if self._pool is broken and not self._closed:
                log.error("a process that takes batches has died; they are started anew")
                self._pool = self._make()
        broken.shutdown(wait=False, cancel_futures=True)


_own: list[BillingStore] = []
"""This process's store, if it is a worker."""


def _begin(options: StoreOptions) -> None:
    configure_logs(level=logging.WARNING)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The process that started this one ends it.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _own.append(options.open_on(Database(options.url)))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _take(raw: bytes, tenant: str | None, node: str | None) -> Taken | _Refused:
    try:
        return take_batch(_own[0], raw, tenant=tenant, node=node)
    except BatchRefusedError as refused:
        return _Refused(refused.kind, str(refused))
    except BillingError as error:
        return _Refused(None, str(error), away=isinstance(error, StoreUnavailableError))
