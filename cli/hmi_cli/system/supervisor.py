"""Keeps one child process running: restarts it when it ends, stops it gracefully."""

import asyncio
import logging
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hmi_operator.embedded.child_process import child_process

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backoff:
    """Wait before a restart: doubled at each failure."""

    first_s: float = 0.5
    longest_s: float = 30.0
    reset_after_s: float = 60.0
    """After a child has run this long, the next wait is ``first_s`` again."""

    def delay(self, failures: int) -> float:
        """Return the seconds to wait after this many consecutive failures, from 1."""
        return float(min(self.longest_s, self.first_s * 2 ** min(failures - 1, 30)))


class Supervisor:
    """Runs one command until ``run`` is cancelled.

    The child's output goes to ``log``, its process id to ``pid_file`` while it runs. When ``run`` is
    cancelled, the child gets SIGTERM, and SIGKILL if it has not ended after ``grace_s``.
    """

    def __init__(
        self,
        name: str,
        command: list[str],
        environment: Mapping[str, str],
        log: Path,
        *,
        pid_file: Path,
        backoff: Backoff = Backoff(),
        grace_s: float = 15.0,
    ) -> None:
        self.name = name
        self._command = command
        self._environment = dict(environment)
        self._log = log
        self._pid_file = pid_file
        self._backoff = backoff
        self._grace_s = grace_s

    async def run(self) -> None:
        """Keep the child running until cancelled."""
        failures = 0
        while True:
            started = time.monotonic()
            code = await self._run_once()
            lived = time.monotonic() - started
            failures = 1 if lived > self._backoff.reset_after_s else failures + 1
            delay = self._backoff.delay(failures)
            logger.warning(
                "the %s ended with %s after %.0f s; restarting it in %.1f s (its log: %s)",
                self.name,
                _describe_exit(code),
                lived,
                delay,
                self._log,
            )
            await asyncio.sleep(delay)

    async def _run_once(self) -> int:
        try:
            async with child_process(
                self._command, self._environment, self._log, grace_seconds=self._grace_s
            ) as process:
                self._pid_file.write_text(f"{process.pid}\n")
                return await process.wait()
        finally:
            self._pid_file.unlink(missing_ok=True)


def _describe_exit(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
