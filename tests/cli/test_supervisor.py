"""The supervisor restarts its child and stops it."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmi_cli.system.supervisor import Backoff, Supervisor

LIMIT_S = 20.0
FOREVER = "import time; print('started', flush=True); time.sleep(600)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + FOREVER


def supervise(tmp_path: Path, program: str, grace_s: float = 10.0) -> Supervisor:
    """Return a supervisor of a Python program, which waits hardly at all between starts."""
    return Supervisor(
        "child",
        [sys.executable, "-c", program],
        os.environ,
        tmp_path / "child.log",
        pid_file=tmp_path / "child.pid",
        backoff=Backoff(first_s=0.01, longest_s=0.05),
        grace_s=grace_s,
    )


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, with a limit."""
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110 (a file is waited for)
            await asyncio.sleep(0.01)


def starts(tmp_path: Path) -> int:
    """Return how often the child said that it started."""
    log = tmp_path / "child.log"
    return log.read_text().count("started") if log.exists() else 0


async def cancelled(running: "asyncio.Task[None]") -> None:
    """Cancel a supervisor and wait for its end."""
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


def test_an_ended_child_is_restarted(tmp_path: Path) -> None:
    async def scenario() -> None:
        running = asyncio.create_task(supervise(tmp_path, "print('started', flush=True)").run())
        await until(lambda: starts(tmp_path) >= 3)
        await cancelled(running)

    asyncio.run(scenario())


def test_a_killed_child_is_restarted(tmp_path: Path) -> None:
    async def scenario() -> None:
        running = asyncio.create_task(supervise(tmp_path, FOREVER).run())
        await until(lambda: starts(tmp_path) == 1)
        first = int((tmp_path / "child.pid").read_text())
        os.kill(first, signal.SIGKILL)
        await until(lambda: starts(tmp_path) == 2)
        assert int((tmp_path / "child.pid").read_text()) != first
        await cancelled(running)

    asyncio.run(scenario())


@pytest.mark.parametrize(("program", "grace_s"), [(FOREVER, 10.0), (STUBBORN, 0.2)])
def test_a_cancelled_supervisor_leaves_no_child(tmp_path: Path, program: str, grace_s: float) -> None:
    async def scenario() -> None:
        running = asyncio.create_task(supervise(tmp_path, program, grace_s).run())
        await until(lambda: starts(tmp_path) == 1)
        child = int((tmp_path / "child.pid").read_text())
        await cancelled(running)
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
        assert not (tmp_path / "child.pid").exists()

    asyncio.run(scenario())


@given(st.integers(1, 10_000), st.floats(0.01, 10), st.floats(10, 100))
def test_waits_double_up_to_the_longest(failures: int, first: float, longest: float) -> None:
    backoff = Backoff(first_s=first, longest_s=longest)
    assert first <= backoff.delay(failures) <= longest
    assert backoff.delay(failures) <= backoff.delay(failures + 1)
