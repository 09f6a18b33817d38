"""Training runs as subprocesses, a few at a time, and their work folders.

A run's log is kept as long as its resource. Other files (tokenized rows, checkpoints, copies of artifacts:
tens of megabytes a run) are removed after a success, a day after a failure, for inspection, and a week after
a run that ended without a result, which can be resumed until then.
"""

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from hmi_api.internal.runs import RunView
from hmi_api.internal.trainer import EXIT_DONE, EXIT_FAILED, RESULT_FILE, TrainingSettings
from hmi_operator.embedded.child_process import child_process
from hmi_operator.embedded.files import write_json
from hmi_operator.planning import JobView

logger = logging.getLogger(__name__)
_ORPHAN_POLL_SECONDS = 0.2
_SWEEP_SECONDS = 3600.0
_NOT_FOR_CHILDREN = {"HMI_ADMIN_KEY", "HMI_API_KEY"}
TRAINING_PROGRAM = (sys.executable, "-m", "hmi_runtime.training")
ExitListener = Callable[[RunView], None]


@dataclass
class _Job:
    """One run's process: queued, alive or ended."""

    run: RunView
    task: asyncio.Task[None] | None = None
    started: bool = False
    crashes: int = 0
    ended_at: datetime | None = None

    @property
    def alive(self) -> bool:
        return self.task is not None and not self.task.done()


class SubprocessJobs:
    """Starts ``program domain|adapter`` for each run, in ``{runs}/{uid}/{run id}``, with a log beside it.

    A process dies with this one; a process that an earlier owner of the folder left is stopped first.
    ``environment`` are variables for all processes besides the inherited ones: the control plane's address,
    the internal token and the artifact store; ``HMI_RUN_ID`` and ``HMI_WORK_DIR`` are added for each.
    ``on_exit``, if set, is called with each run whose process has ended.
    """

    def __init__(
        self,
        runs: Path,
        environment: Mapping[str, str],
        *,
        program: Sequence[str] = TRAINING_PROGRAM,
        concurrency: int = 1,
        grace_seconds: float = 10.0,
    ) -> None:
        self._runs = runs
        self._environment = dict(environment)
        self._program = tuple(program)
        self._slots = asyncio.Semaphore(concurrency)
        self._grace = grace_seconds
        self._jobs: dict[str, _Job] = {}
        self.on_exit: ExitListener | None = None

    def work_dir(self, run: RunView) -> Path:
        """Return the folder of a run: checkpoints, unfinished files, ``run.log`` and ``process.json``."""
        return self._runs / run.uid / run.id

    def log_file(self, run: RunView) -> Path:
        """Return the file of a run's output."""
        return self.work_dir(run) / LOG_FILE

    async def start(self, run: RunView) -> None:
        """Start the run's process, or queue it; do nothing if it is alive or queued."""
        job = self._jobs.setdefault(run.id, _Job(run))
        if not job.alive:
            job.task = asyncio.create_task(self._do(job), name=f"run {run.id}")

    async def observe(self, run: RunView) -> JobView | None:
        """Return the run's process; None if it never had one here."""
        job = self._jobs.get(run.id)
        if job is None:
            return None
        return JobView(job.alive, job.crashes, job.ended_at, queued=job.alive and not job.started)

    async def stop(self, run_id: str, namespace: str) -> None:
        """Stop the run's process, if it has one, and wait until it is gone."""
        job = self._jobs.pop(run_id, None)
        if job is not None and job.task is not None:
            job.task.cancel()
            await asyncio.wait({job.task})

    async def delete_all(self, uid: str, namespace: str) -> None:
        """Stop the processes of a resource's runs and delete their folders; idempotent."""
        for run_id in [run_id for run_id, job in self._jobs.items() if job.run.uid == uid]:
            await self.stop(run_id, namespace)
        folder = self._runs / uid
        for file in list(folder.glob(f"*/{PROCESS_FILE}")):
            await self._stop_orphan(file.parent)
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def clean_up(self) -> None:
        """Remove expired work files, now and every hour, until cancelled."""
        while True:
            busy = [self.work_dir(job.run) for job in self._jobs.values() if job.alive]
            await asyncio.to_thread(remove_expired, self._runs, busy, time.time())
            await asyncio.sleep(_SWEEP_SECONDS)

    async def close(self) -> None:
        """Stop all processes; each has time to write a checkpoint."""
        tasks = {job.task for job in self._jobs.values() if job.task is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._jobs.clear()

    async def _do(self, job: _Job) -> None:
        """Wait for a slot, run the process to its end and call ``on_exit``."""
        job.started = False
        async with self._slots:
            job.started = True
            try:
                await self._stop_orphan(self.work_dir(job.run))
                code = await self._run_process(job)
                logger.info("run %s: its process ended with code %d", job.run.id, code)
                await asyncio.to_thread(clean_up_after, self.work_dir(job.run), code)
            except OSError as error:
                logger.error("run %s: its process could not be started: %s", job.run.id, error)
        job.ended_at = datetime.now(UTC)
        job.crashes += 1  # only read if the run has not ended: then this was a crash
        if self.on_exit is not None:
            # After this task is done, so that the process is not seen as alive.
            asyncio.get_running_loop().call_soon(self.on_exit, job.run)

    async def _run_process(self, job: _Job) -> int:
        folder, environment = self.work_dir(job.run), self._environment_of(job.run)
        log = await asyncio.to_thread(_create_log, folder)
        command = [*self._program, job.run.spec.kind]
        async with child_process(command, environment, log, grace_seconds=self._grace) as process:
            write_pid_file(folder / PROCESS_FILE, process.pid)
            return await process.wait()

    async def _stop_orphan(self, work_dir: Path) -> None:
        """Stop a process of an earlier owner: two must never write to one folder."""
        file = work_dir / PROCESS_FILE
        deadline = asyncio.get_running_loop().time() + self._grace
        while (pid := read_pid_file(file)) is not None:
            late = asyncio.get_running_loop().time() > deadline
            send(pid, signal.SIGKILL if late else signal.SIGTERM)
            await asyncio.sleep(_ORPHAN_POLL_SECONDS)

    def _environment_of(self, run: RunView) -> dict[str, str]:
        own = TrainingSettings.variables(run_id=run.id, work_dir=self.work_dir(run))
        inherited = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_CHILDREN}
        return {**inherited, **self._environment, **own}


def _create_log(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / LOG_FILE
    log.touch(0o600)
    return log


_STARTED_FIELD = 19  # of /proc/PID/stat, counted after the name: clock ticks since boot


def started_at(pid: int) -> int | None:
    """Return when a live process started, in clock ticks since boot; None when there is none, or no /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    after_name = stat.rpartition(")")[2].split()
    return None if after_name[0] == "Z" else int(after_name[_STARTED_FIELD])


def boot_id() -> str:
    """Return the id of this boot of the machine; start times of two boots cannot be compared."""
    file = Path("/proc/sys/kernel/random/boot_id")
    return file.read_text().strip() if file.exists() else ""


def write_pid_file(file: Path, pid: int) -> None:
    """Write the pid and start time of a process, so that a later owner can recognize it."""
    write_json(file, {"pid": pid, "startedAt": started_at(pid), "boot": boot_id()})


def read_pid_file(file: Path) -> int | None:
    """Return the pid in a file if that very process, and no other with its pid, is alive."""
    try:
        body = json.loads(file.read_bytes())
        pid, started, boot = int(body["pid"]), body["startedAt"], body["boot"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    same = started is not None and boot == boot_id() and started_at(pid) == started
    return pid if same else None


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal; do nothing if the process is gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


LOG_FILE = "run.log"
PROCESS_FILE = "process.json"
KEPT_AFTER_FAILURE_SECONDS = 24 * 3600.0
KEPT_FOR_RESUMPTION_SECONDS = 7 * 24 * 3600.0
_ENDED_FILE = "ended.json"


def clean_up_after(folder: Path, code: int) -> None:
    """Remove the files of a run that are of no use after its process's exit ``code``."""
    if code == EXIT_DONE:
        remove_all_but_log(folder)
    elif code == EXIT_FAILED and folder.is_dir():
        write_json(folder / _ENDED_FILE, {"code": code})


def remove_expired(runs: Path, busy: Collection[Path], now: float) -> None:
    """Remove expired work files of ``{runs}/{uid}/{run id}``, except of ``busy`` folders.

    ``now`` is in seconds since 1970. Folders that cannot be read or removed are logged and skipped.
    """
    for folder in runs.glob("*/*"):
        if not folder.is_dir() or folder in busy or read_pid_file(folder / PROCESS_FILE) is not None:
            continue
        try:
            if now - _last_used(folder) > _kept_seconds(folder):
                remove_all_but_log(folder)
        except OSError as error:
            logger.warning("%s was not cleaned up: %s", folder, error)


def remove_all_but_log(folder: Path) -> None:
    """Remove everything but the log."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name == LOG_FILE:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _kept_seconds(folder: Path) -> float:
    ended = (folder / _ENDED_FILE).exists() or (folder / RESULT_FILE).exists()
    return KEPT_AFTER_FAILURE_SECONDS if ended else KEPT_FOR_RESUMPTION_SECONDS


def _last_used(folder: Path) -> float:
    """Return when anything in a folder was last written, in seconds since 1970."""
    newest = folder.stat().st_mtime
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            newest = max(newest, path.lstat().st_mtime)
    return newest
