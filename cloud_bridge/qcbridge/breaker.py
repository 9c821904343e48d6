"""When a provider is left alone for a while, instead of being asked in vain again and again.

Closed, everybody passes. After enough failures in a row it opens, and nobody does;
after the pause one question at a time goes through, and the first success closes it.
One event loop uses it; any thread may ask `admits`.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from qcnode.errors import ProviderUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Breaker:
    """Counts failures in a row; `monotonic_s` tells how long it has been open."""

    def __init__(
        self, *, failures_max: int, pause_s: float, monotonic_s: Callable[[], float]
    ) -> None:
        self._failures_max = failures_max
        self.pause_s = pause_s
        self._monotonic_s = monotonic_s
        self._failures = 0
        self._opened_at_s: float | None = None
        self._probing = False

    @property
    def is_open(self) -> bool:
        """Whether the last word was that the provider fails."""
        return self._opened_at_s is not None

    def admits(self) -> bool:
        """Say whether a question would go through now."""
        if self._opened_at_s is None:
            return True
        return not self._probing and self._monotonic_s() - self._opened_at_s >= self.pause_s

    @contextmanager
    def passage(self) -> Iterator[None]:
        """Let one question through, or raise `ProviderUnavailableError`."""
        if not self.admits():
            raise ProviderUnavailableError(
                f"the provider failed {self._failures} times in a row and is left alone for"
                f" {self.pause_s:.0f} s; a person rules meanwhile"
            )
        probing = self.is_open
        self._probing = self._probing or probing
        try:
            yield
        finally:
            if probing:
                self._probing = False

    def succeeded(self) -> None:
        """Note an answer; the provider is well."""
        self._failures, self._opened_at_s = 0, None

    def failed(self) -> None:
        """Note a failure; enough of them open the breaker, and another keeps it open."""
        self._failures += 1
        if self._failures >= self._failures_max:
            self._opened_at_s = self._monotonic_s()
