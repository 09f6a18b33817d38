"""Logs of runs are kept; working files only as long as they are of use."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from planning_fixtures import domain, run_of

from hmi_api.internal.runs import RunState
from hmi_operator.embedded import SubprocessJobs
from hmi_operator.embedded.processes import (
    KEPT_AFTER_FAILURE_SECONDS,
    KEPT_FOR_RESUMPTION_SECONDS,
    clean_up_after,
    remove_expired,
    write_pid_file,
)

HOUR = 3600.0


def folder_of_run(runs: Path, name: str = "run-1", *, age: float = 0.0) -> Path:
    """Make the folder of a run that was last written ``age`` seconds ago."""
    folder = runs / "uid" / name
    (folder / "features").mkdir(parents=True)
    (folder / "run.log").write_text("began\n")
    (folder / "features" / "rows.f16").write_bytes(b"0" * 1000)
    (folder / "checkpoint.safetensors").write_bytes(b"0" * 1000)
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (time.time() - age,) * 2)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_run_that_succeeded_leaves_its_log(tmp_path: Path) -> None:
    folder = folder_of_run(tmp_path)
    clean_up_after(folder, 0)
    assert names(folder) == ["run.log"]
    assert (folder / "run.log").read_text() == "began\n"


@pytest.mark.parametrize(
    ("code", "kept"), [(1, KEPT_AFTER_FAILURE_SECONDS), (-9, KEPT_FOR_RESUMPTION_SECONDS)]
)
def test_files_of_an_unfinished_run_are_kept_for_a_while(code: int, kept: float, tmp_path: Path) -> None:
    folder = folder_of_run(tmp_path)
    clean_up_after(folder, code)
    assert "features" in names(folder)
    remove_expired(tmp_path, (), time.time() + kept - HOUR)
    assert "features" in names(folder)
    remove_expired(tmp_path, (), time.time() + kept + HOUR)
    assert names(folder) == ["run.log"]


def test_folders_of_earlier_processes_are_cleaned_up_too(tmp_path: Path) -> None:
    old = folder_of_run(tmp_path, "old", age=KEPT_AFTER_FAILURE_SECONDS + HOUR)
    (old / "result.json").write_text("{}")
    os.utime(old / "result.json", (0, 0))
    os.utime(old, (0, 0))
    resumable = folder_of_run(tmp_path, "resumable", age=KEPT_AFTER_FAILURE_SECONDS + HOUR)
    remove_expired(tmp_path, (), time.time())
    assert names(old) == ["run.log"]
    assert "checkpoint.safetensors" in names(resumable)


def test_folders_in_use_are_kept(tmp_path: Path) -> None:
    busy = folder_of_run(tmp_path, "busy")
    alive = folder_of_run(tmp_path, "alive")
    write_pid_file(alive / "process.json", os.getpid())
    remove_expired(tmp_path, [busy], time.time() + 10 * KEPT_FOR_RESUMPTION_SECONDS)
    assert "features" in names(busy)
    assert "features" in names(alive)


@pytest.mark.anyio
@pytest.mark.parametrize(("code", "left"), [(0, False), (1, True)])
async def test_the_folder_is_cleaned_up_when_its_process_ends(code: int, left: bool, tmp_path: Path) -> None:
    program = (
        "import os, pathlib, sys; pathlib.Path(os.environ['HMI_WORK_DIR'], 'rows').touch(); sys.exit({})"
    )
    jobs = SubprocessJobs(tmp_path, {}, program=(sys.executable, "-c", program.format(code)))
    ended = asyncio.Event()
    jobs.on_exit = lambda run: ended.set()
    run = run_of(domain(), "sha256:d", RunState.PENDING)
    await jobs.start(run)
    await asyncio.wait_for(ended.wait(), 20)
    await jobs.close()
    assert (jobs.work_dir(run) / "rows").exists() is left
    assert jobs.log_file(run).exists()


@pytest.mark.anyio
async def test_cleanup_begins_at_once(tmp_path: Path) -> None:
    folder = folder_of_run(tmp_path, age=10 * KEPT_FOR_RESUMPTION_SECONDS)
    jobs = SubprocessJobs(tmp_path, {})
    task = asyncio.create_task(jobs.clean_up())
    async with asyncio.timeout(20):
        while len(names(folder)) > 1:  # noqa: ASYNC110 -- what is waited for happens in a thread
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait({task})


def test_the_folder_of_a_running_orphan_is_kept(tmp_path: Path) -> None:
    folder = folder_of_run(tmp_path, age=10 * KEPT_FOR_RESUMPTION_SECONDS)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as orphan:
        write_pid_file(folder / "process.json", orphan.pid)
        remove_expired(tmp_path, (), time.time() + 10 * KEPT_FOR_RESUMPTION_SECONDS)
        orphan.kill()
    assert "features" in names(folder)
