"""When a failed call is repeated: exponential backoff with a limit on attempts or on time."""

import logging
from asyncio import sleep as sleep_async
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import sleep
from typing import Any, TypeVar

from tenacity import AsyncRetrying, RetryCallState, Retrying, retry_if_exception, stop_any
from tenacity.stop import stop_after_attempt, stop_base, stop_before_delay

log = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")
ShouldRetry = Callable[[BaseException], bool]


class Unavailable(Exception):
    """The other side did not answer, or requests another call after ``retry_after`` seconds."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff: ``first_wait`` seconds, then twice as long each time, at most ``longest_wait``.

    ``attempts`` limits the number of calls and ``patience`` the seconds from the first call to the last;
    without either, a call is repeated until it succeeds or fails for good. The last error is raised
    unchanged. The ``Retry-After`` of an ``Unavailable`` makes a wait longer, up to ``longest_wait``.
    """

    first_wait: float
    longest_wait: float
    attempts: int | None = None
    patience: float | None = None

    def wait(self, failures: int) -> float:
        """Return the seconds to wait after that many failures in a row, from 1."""
        return min(self.first_wait * 2.0 ** min(failures - 1, 60), self.longest_wait)

    def run(
        self,
        call: Callable[[], ResultT],
        *,
        should_retry: ShouldRetry,
        name: str | None = None,
    ) -> ResultT:
        """Call until it succeeds, blocking while it waits; with a ``name``, log each wait."""
        return Retrying(**self._options(should_retry, name), sleep=sleep)(call)

    async def run_async(
        self,
        call: Callable[[], Awaitable[ResultT]],
        *,
        should_retry: ShouldRetry,
        name: str | None = None,
    ) -> ResultT:
        """Await until it succeeds; with a ``name``, log each wait."""
        return await AsyncRetrying(**self._options(should_retry, name), sleep=sleep_async)(call)

    def _options(self, should_retry: ShouldRetry, name: str | None) -> dict[str, Any]:
        return {
            "retry": retry_if_exception(should_retry),
            "wait": self._wait_after,
            "stop": self._stop(),
            "before_sleep": self._log_wait(name) if name else None,
            "reraise": True,
        }

    def _stop(self) -> stop_base:
        stops: list[stop_base] = []
        if self.attempts is not None:
            stops.append(stop_after_attempt(self.attempts))
        if self.patience is not None:
            stops.append(stop_before_delay(self.patience))
        return stop_any(*stops)

    def _wait_after(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        requested = (error.retry_after if isinstance(error, Unavailable) else None) or 0.0
        return max(self.wait(state.attempt_number), min(requested, self.longest_wait))

    def _log_wait(self, name: str) -> Callable[[RetryCallState], None]:
        """Log each wait while the waits grow; repetitions at the longest wait are not logged."""

        def log_wait(state: RetryCallState) -> None:
            if state.attempt_number == 1 or self.wait(state.attempt_number) > self.wait(
                state.attempt_number - 1
            ):
                error = state.outcome.exception() if state.outcome else None
                log.warning("%s failed (%s); trying again in %.1f s", name, error, state.upcoming_sleep)

        return log_wait
