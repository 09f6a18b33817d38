"""Keeps one child process running: starts it, starts it again when it ends, stops it in peace."""

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
    """How long to wait before the next start: doubling while the child keeps failing."""

    first_s: float = 0.5
    longest_s: float = 30.0
    forgotten_after_s: float = 60.0
    """A child that lived this long had a good start; the next wait is the first again."""

    def delay(self, failures: int) -> float:
        """Return the seconds to wait after so many failures in a row, from 1."""
        return float(min(self.longest_s, self.first_s * 2 ** min(failures - 1, 30)))


def tethered(command: list[str]) -> list[str]:
    """Return the command line that runs ``command`` tied to the life of the process that calls this."""
    return [sys.executable, tether.__file__, str(os.getpid()), *command]


class Supervisor:
    """Runs one command for as long as ``run`` is not cancelled.

    The child's output goes to ``log`` and its process id, while it lives, to ``pid_file``. When ``run`` is
    cancelled, the child gets SIGTERM, and SIGKILL if it has not ended ``grace_s`` later.
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
            failures = 1 if lived > self._backoff.forgotten_after_s else failures + 1
            delay = self._backoff.delay(failures)
            logger.warning(
                "the %s ended with %s after %.0f s; starting it again in %.1f s (its log: %s)",
                self.name,
                _ending(code),
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
                # Its own session: Ctrl-C at the terminal reaches the parent alone, which then drains it.
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


def _ending(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
