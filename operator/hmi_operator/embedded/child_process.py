"""Child processes that end with this process, and are stopped gracefully before."""

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from hmi_operator.embedded import tether

logger = logging.getLogger(__name__)


def tethered(command: Sequence[str]) -> list[str]:
    """Return a command line that runs ``command`` and stops it when the calling process ends."""
    return [sys.executable, tether.__file__, str(os.getpid()), *command]


@contextlib.asynccontextmanager
async def child_process(
    command: Sequence[str], environment: Mapping[str, str], log: Path, *, grace_seconds: float
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start a command whose output is appended to ``log``; at the end of the block, stop it if it runs.

    It gets SIGTERM, and SIGKILL after ``grace_seconds``. Raises ``OSError`` if it cannot be started.
    """
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *tethered(command),
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C reaches the parent only, which then stops it gracefully
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            await _stop(process, grace_seconds)


async def _stop(process: asyncio.subprocess.Process, grace_seconds: float) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), grace_seconds)
    except TimeoutError:
        logger.warning("process %d did not end within %.0f s and was killed", process.pid, grace_seconds)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
