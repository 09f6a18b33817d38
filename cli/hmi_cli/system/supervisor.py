"""Keeps one child process running: restarts it when it ends, stops it gracefully.

The operator's subprocess Jobs (``hmi_operator.embedded``) are another case and share only ``tether``: a Job
runs once, and a run that outlives a restart of the operator is found again and continues.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hmi_operator.embedded import tether

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


def tethered(command: list[str]) -> list[str]:
    """Return a command line that runs ``command`` and stops it when the calling process ends."""
    return [sys.executable, tether.__file__, str(os.getpid()), *command]


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
        with self._log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *tethered(self._command),
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A session of its own: Ctrl-C reaches only the parent, which then stops the child.
                start_new_session=True,
            )
        self._pid_file.write_text(f"{process.pid}\n")
        try:
            return await process.wait()
        finally:
            if process.returncode is None:
                await self._stop(process)
            self._pid_file.unlink(missing_ok=True)

    async def _stop(self, process: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), self._grace_s)
        except TimeoutError:
            logger.warning("the %s did not end within %.0f s and was killed", self.name, self._grace_s)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _describe_exit(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
