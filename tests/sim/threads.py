"""The ledger's writing thread, run by the simulation instead of by the system.

The ledger's own code stays as it is: only what it calls `threading.Thread`, `queue.Queue`
and `Future` is put in its place here. A turn of the thread is a step of its process, some
milliseconds after there is work, and whoever waits for one of its futures lets it work.
"""

import contextlib
import queue
import threading
from concurrent.futures import Future

import qcnode.books.ledger as ledger_module
from tests.sim.loop import PROCESS


class Writer:
    """Stands for the thread: `_run` returns when there is nothing to do just now."""

    def __init__(self, *, target, name, daemon):
        assert daemon, name
        self._run = target
        self._process = PROCESS.get()
        self._alive = False
        self._due = False
        self._alarm = None
        self.rings = False
        """Whether the time is over for which the thread would have waited."""

    def start(self):
        self._alive = True
        self._run.__self__._waiting.writer = self
        self._process.writers.append(self)
        self.wake()

    def is_alive(self):
        return self._alive

    def join(self, timeout):
        del timeout
        self.turn()
        self._alive = False

    def wake(self):
        if not self._due:
            self._due = True
            self._process.later(self._process.disk_latency(), self.turn)

    def wait(self, seconds):
        """Come back after so many seconds, unless there is work before."""
        if self._alarm is None:
            self._alarm = self._process.later(seconds, self._ring)

    def works(self):
        """There is work, so nobody waits any more."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def turn(self):
        self._due = False
        if self._alive:
            self._run()
            self._process.wrote()

    def _ring(self):
        self._alarm, self.rings = None, True
        if not self._process.dead:
            self.turn()


class Waiting(queue.Queue):
    """A queue that never makes anybody wait: an empty one gives None, as at the end."""

    writer = None

    def put(self, item, block=True, timeout=None):  # noqa: FBT002  # as queue has it
        super().put(item, block=block, timeout=timeout)
        if self.writer is not None:
            self.writer.wake()

    def get(self, block=True, timeout=None):  # noqa: FBT002  # as queue has it
        if not self.empty():
            self.writer.works()
            return super().get(block=False)
        if not block:
            raise queue.Empty
        if timeout is None:
            return None
        if self.writer.rings:
            self.writer.rings = False
            raise queue.Empty
        self.writer.wait(timeout)
        return None

    def get_nowait(self):
        return self.get(block=False)


class Awaited(Future):
    """What the thread will have done; to wait for it is to let the thread work."""

    def result(self, timeout=None):
        process = PROCESS.get()
        if process is not None and not self.done() and not process.stalled():
            for writer in process.writers:
                writer.turn()
        return super().result(timeout=0 if timeout is not None else None)


class Instead:
    """A module with some of its names replaced."""

    def __init__(self, module, **names):
        self._module = module
        self.__dict__.update(names)

    def __getattr__(self, name):
        return getattr(self._module, name)


@contextlib.contextmanager
def simulated_threads():
    """Let ledgers opened here be written by the simulation."""
    replaced = {
        "threading": Instead(threading, Thread=Writer),
        "queue": Instead(queue, Queue=Waiting),
        "Future": Awaited,
    }
    before = {name: getattr(ledger_module, name) for name in replaced}
    vars(ledger_module).update(replaced)
    try:
        yield
    finally:
        vars(ledger_module).update(before)
