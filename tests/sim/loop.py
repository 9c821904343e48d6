"""An event loop whose time is a number and whose order is the same each time.

One thread, no sockets, no clock: what is ready runs in the order in which it became
ready, and when nothing is ready the time jumps to the next timer. Every step belongs to a
process of the simulation, or to the world around them. A process that has died takes no
further step: nothing is unwound and nothing is cleaned up, as after a power cut.
"""

import asyncio
import contextlib
import heapq
import itertools
from collections import deque
from contextvars import ContextVar, copy_context

PROCESS = ContextVar("process", default=None)
"""Whose step it is; None is the world's."""


class StalledError(AssertionError):
    """Nothing is left to happen, or far too much does: the simulated system hangs."""


class Process:
    """Something that runs in the simulation and can die at any step.

    `latency` gives the seconds that a thing done by one of its threads takes.
    """

    def __init__(self, name, loop, *, latency):
        self.name = name
        self.loop = loop
        self.latency = latency
        self.dead = False
        self.context = copy_context()
        self.context.run(PROCESS.set, self)

    def start(self, coro):
        """Begin a task that lives and dies with this process."""
        task = self.loop.create_task(coro, context=self.context.copy())
        task.add_done_callback(self._note_end)
        return task

    def _note_end(self, task):
        # Nothing may end by an error that nobody expected, except the dead.
        error = None if task.cancelled() else task.exception()
        if error is not None and not self.dead and not self.loop.afterlife:
            self.loop.failures.append(error)

    def later(self, delay, callback, *args):
        """Call something, if the process still lives by then."""
        return self.loop.call_later(delay, callback, *args, context=self.context)


class VirtualLoop(asyncio.AbstractEventLoop):
    """Runs one simulation. `on_step(process)` is told of each step before it is taken."""

    def __init__(self, *, steps_max, on_step):
        self._now = 0.0
        self._ready = deque()
        self._timers = []
        self._graves = []
        self._order = itertools.count()
        self._steps_max = steps_max
        self._running = False
        self._on_step = on_step
        self.steps = 0
        self.tasks = []
        self.failures = []
        self.afterlife = False
        """Whether the dead may move, to be cleared away when all is over."""

    # -- what asyncio asks of a loop ------------------------------------------------------

    def time(self):
        return self._now

    def call_soon(self, callback, *args, context=None):
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(self, delay, callback, *args, context=None):
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(self, when, callback, *args, context=None):
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._order), handle))
        handle._scheduled = True
        return handle

    def _timer_handle_cancelled(self, handle):
        pass  # It is passed over when its time comes.

    def create_future(self):
        return asyncio.Future(loop=self)

    def create_task(self, coro, *, name=None, context=None, **kwargs):
        task = asyncio.Task(coro, loop=self, name=name, context=context, **kwargs)
        self.tasks.append(task)
        return task

    def run_in_executor(self, _executor, func, *args):
        """Do it in this thread, after the time it takes the process."""
        process = PROCESS.get()
        done = self.create_future()

        def work():
            try:
                result = func(*args)
            except Exception as error:  # noqa: BLE001  # it is raised where it is awaited
                if not done.cancelled():
                    done.set_exception(error)
            else:
                if not done.cancelled():
                    done.set_result(result)

        self.call_later(0.0 if process is None else process.latency(), work)
        return done

    def get_debug(self):
        return False

    def is_running(self):
        return self._running

    def is_closed(self):
        return False

    def call_exception_handler(self, context):
        error = context.get("exception")
        if not self.afterlife and error is not None:
            self.failures.append(error)

    # -- how it runs ----------------------------------------------------------------------

    def run_until_complete(self, future):
        """Step until `future` is done, and return its result."""
        future = asyncio.ensure_future(future, loop=self)
        with self._as_running():
            while not future.done():
                self._step()
        return future.result()

    def bury(self):
        """Cancel all that is left, the dead's too."""
        self.afterlife = True
        self.failures.clear()
        self._steps_max = self.steps + 20_000
        left = [task for task in self.tasks if not task.done()]
        with self._as_running(), contextlib.suppress(StalledError):
            for task in left:
                task.cancel()
            self._ready.extend(self._graves)
            while not all(task.done() for task in left):
                self._step()
        for task in left:
            if task.done() and not task.cancelled():
                task.exception()

    @contextlib.contextmanager
    def _as_running(self):
        asyncio._set_running_loop(self)
        self._running = True
        try:
            yield
        finally:
            self._running = False
            asyncio._set_running_loop(None)

    def _step(self):
        if not self._ready:
            if not self._timers:
                raise StalledError("nothing is left to happen, and the run is not over")
            self._now = max(self._now, self._timers[0][0])
            while self._timers and self._timers[0][0] <= self._now:
                self._ready.append(heapq.heappop(self._timers)[2])
        handle = self._ready.popleft()
        process = handle._context.get(PROCESS)
        if handle.cancelled():
            return
        if process is not None and process.dead and not self.afterlife:
            self._graves.append(handle)
            return
        self.steps += 1
        if self.steps > self._steps_max:
            raise StalledError(f"no end after {self._steps_max} steps")
        if not self.afterlife:
            self._on_step(process)
        handle._run()
        if self.failures:
            raise self.failures[0]
