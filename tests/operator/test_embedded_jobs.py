"""Training subprocesses: bounded in number, tied to their parent, never two in one folder."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from planning_fixtures import domain, run_of

from hmi_api.internal.runs import RunState, RunView
from hmi_operator.embedded import SubprocessJobs, tether
from hmi_operator.embedded.processes import read_pid_file, started_at, write_pid_file

pytestmark = pytest.mark.anyio
SLEEPER = (
    "import os, pathlib, time; pathlib.Path(os.environ['HMI_WORK_DIR'], 'began').touch(); time.sleep(600)"
)


def a_run(name: str) -> RunView:
    return run_of(domain(), "sha256:d", RunState.PENDING, id=name)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 -- what is waited for is another process's doing
            await asyncio.sleep(0.02)


@pytest.fixture
async def jobs(tmp_path: Path) -> AsyncIterator[SubprocessJobs]:
    made = SubprocessJobs(tmp_path, {}, program=(sys.executable, "-c", SLEEPER), grace_seconds=2)
    yield made
    await made.close()


def pid_of(jobs: SubprocessJobs, run: RunView) -> int | None:
    return read_pid_file(jobs.work_dir(run) / "process.json")


async def test_a_run_beyond_the_limit_waits(jobs: SubprocessJobs) -> None:
    first, second = a_run("run-1"), a_run("run-2")
    await jobs.start(first)
    await jobs.start(first)
    await until((jobs.work_dir(first) / "began").exists)
    await jobs.start(second)
    view = await jobs.observe(second)
    assert view is not None
    assert (view.alive, view.queued) == (True, True)
    assert not (jobs.work_dir(second) / "began").exists()
    await jobs.stop("run-1", "shop")
    await until((jobs.work_dir(second) / "began").exists)
    assert await jobs.observe(first) is None


async def test_the_end_of_a_process_is_reported_and_counted_as_a_crash(tmp_path: Path) -> None:
    jobs = SubprocessJobs(
        tmp_path, {"WORD": "hello"}, program=(sys.executable, "-c", "import os; print(os.environ['WORD'])")
    )
    ended: list[RunView] = []
    jobs.on_exit = ended.append
    run = a_run("run-1")
    await jobs.start(run)
    await until(lambda: ended)
    view = await jobs.observe(run)
    assert view is not None
    assert (view.alive, view.crashes) == (False, 1)
    assert jobs.log_file(run).read_text() == "hello\n"


async def test_training_processes_do_not_get_the_admin_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HMI_ADMIN_KEY", "k")
    program = (sys.executable, "-c", "import os; print('HMI_ADMIN_KEY' in os.environ)")
    jobs = SubprocessJobs(tmp_path, {}, program=program)
    run = a_run("run-1")
    await jobs.start(run)
    await until(lambda: jobs.log_file(run).exists() and jobs.log_file(run).read_text())
    assert jobs.log_file(run).read_text() == "False\n"
    await jobs.close()


async def test_deleting_a_resource_ends_its_process_and_removes_its_folder(jobs: SubprocessJobs) -> None:
    run = a_run("run-1")
    await jobs.start(run)
    await until((jobs.work_dir(run) / "began").exists)
    pid = pid_of(jobs, run)
    assert pid is not None
    await jobs.delete_all(run.uid, "shop")
    await jobs.delete_all(run.uid, "shop")
    assert started_at(pid) is None
    assert not jobs.work_dir(run).parent.exists()


async def test_a_process_left_by_an_earlier_owner_is_ended_before_its_run_starts_again(
    jobs: SubprocessJobs,
) -> None:
    run = a_run("run-1")
    sleeping = [sys.executable, "-c", "import time; time.sleep(600)"]
    with subprocess.Popen(sleeping) as orphan:  # noqa: ASYNC220
        write_pid_file(jobs.work_dir(run) / "process.json", orphan.pid)
        await jobs.start(run)
        await until((jobs.work_dir(run) / "began").exists)
        assert orphan.poll() == -signal.SIGTERM


async def test_a_program_that_cannot_start_counts_as_a_crash(tmp_path: Path) -> None:
    (tmp_path / "uid-hotel").write_text("a file where the folder should be")
    jobs = SubprocessJobs(tmp_path, {}, program=("true",))
    ended: list[RunView] = []
    jobs.on_exit = ended.append
    await jobs.start(a_run("run-1"))
    await until(lambda: ended)
    view = await jobs.observe(a_run("run-1"))
    assert view is not None
    assert (view.alive, view.crashes) == (False, 1)


def test_a_process_id_that_was_reused_is_not_ours(tmp_path: Path) -> None:
    file = tmp_path / "process.json"
    write_pid_file(file, os.getpid())
    assert read_pid_file(file) == os.getpid()
    file.write_text(file.read_text().replace('"startedAt": ', '"startedAt": 1'))
    assert read_pid_file(file) is None


async def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    child = (
        f"import os, pathlib, time; pathlib.Path({str(note)!r}).write_text(str(os.getpid())); time.sleep(600)"
    )
    command = f"[sys.executable, {tether.__file__!r}, str(os.getpid()), sys.executable, '-c', {child!r}]"
    parent = f"import os, subprocess, sys, time\nsubprocess.Popen({command})\ntime.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", parent]) as process:  # noqa: ASYNC220
        await until(lambda: note.exists() and note.read_text())
        pid = int(note.read_text())
        assert started_at(pid) is not None
        process.kill()
    await until(lambda: started_at(pid) is None)
