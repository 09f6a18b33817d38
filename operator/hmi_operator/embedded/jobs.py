"""Training runs as subprocesses of this one, a few at a time."""

import asyncio
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from hmi_api.internal.runs import RunView
from hmi_operator.embedded.processes import remember, remembered, send
from hmi_operator.embedded.work_folders import LOG_FILE, PROCESS_FILE, sweep, tidy_after_end
from hmi_operator.planning import JobView

logger = logging.getLogger(__name__)

_TETHER = Path(__file__).with_name("tether.py")
_ORPHAN_POLL_SECONDS = 0.2
_SWEEP_SECONDS = 3600.0
_NOT_FOR_CHILDREN = {"HMI_ADMIN_KEY", "HMI_API_KEY"}
TRAINING_PROGRAM = (sys.executable, "-m", "hmi_runtime.training")

ExitListener = Callable[[RunView], None]


@dataclass
class _Job:
    """One run's process here: queued, alive or ended."""

    run: RunView
    task: asyncio.Task[None] | None = None
    placed: bool = False
    crashes: int = 0
    ended_at: datetime | None = None

    @property
    def alive(self) -> bool:
        return self.task is not None and not self.task.done()


class SubprocessJobs:
    """Starts ``program domain|adapter`` for each run, in ``{runs}/{uid}/{run id}``, with a log beside it.

    A process dies with this one; one that outlived an earlier owner of the folder is ended first.
    ``environment`` is what every process gets besides this one's own: the address of the control plane, the
    internal token and the artifact store; ``HMI_RUN_ID`` and ``HMI_WORK_DIR`` are added for each.
    ``on_exit``, when set, is called with each run whose process has ended.
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
        self._places = asyncio.Semaphore(concurrency)
        self._grace = grace_seconds
        self._jobs: dict[str, _Job] = {}
        self.on_exit: ExitListener | None = None

    def work_dir(self, run: RunView) -> Path:
        """Return the folder of a run: checkpoints, unfinished files, ``run.log`` and ``process.json``."""
        return self._runs / run.uid / run.id

    def log_file(self, run: RunView) -> Path:
        """Return where a run's output goes."""
        return self.work_dir(run) / LOG_FILE

    async def start(self, run: RunView) -> None:
        """Start the run's process, or queue it; nothing happens when it is alive or queued."""
        job = self._jobs.setdefault(run.id, _Job(run))
        if not job.alive:
            job.task = asyncio.create_task(self._do(job), name=f"run {run.id}")

    async def observe(self, run: RunView) -> JobView | None:
        """Return what is known of the run's process; None when it never had one here."""
        job = self._jobs.get(run.id)
        if job is not None:
            return JobView(job.alive, job.crashes, job.ended_at, queued=job.alive and not job.placed)
        return None

    async def stop(self, run_id: str, namespace: str) -> None:
        """End the run's process, and wait until it is gone; nothing happens when it has none."""
        await self._stop(run_id)

    async def _stop(self, run_id: str) -> None:
        job = self._jobs.pop(run_id, None)
        if job is not None and job.task is not None:
            job.task.cancel()
            await asyncio.wait({job.task})

    async def erase(self, uid: str, namespace: str) -> None:
        """Stop the processes of a resource's runs and erase their folders; idempotent."""
        for run_id in [run_id for run_id, job in self._jobs.items() if job.run.uid == uid]:
            await self._stop(run_id)
        folder = self._runs / uid
        for file in list(folder.glob(f"*/{PROCESS_FILE}")):
            await self._end_orphan(file.parent)
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def keep_tidy(self) -> None:
        """Remove working files that were kept long enough, now and once an hour, until this is cancelled."""
        while True:
            busy = [self.work_dir(job.run) for job in self._jobs.values() if job.alive]
            await asyncio.to_thread(sweep, self._runs, busy, time.time())
            await asyncio.sleep(_SWEEP_SECONDS)

    async def close(self) -> None:
        """End every process, giving each the time to write a checkpoint."""
        tasks = {job.task for job in self._jobs.values() if job.task is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._jobs.clear()

    async def _do(self, job: _Job) -> None:
        """Wait for a place, run the process to its end and tell of it."""
        job.placed = False
        async with self._places:
            job.placed = True
            try:
                await self._end_orphan(self.work_dir(job.run))
                code = await self._run_process(job)
                logger.info("run %s: its process ended with code %d", job.run.id, code)
                await asyncio.to_thread(tidy_after_end, self.work_dir(job.run), code)
            except OSError as error:
                logger.error("run %s: its process could not be started: %s", job.run.id, error)
        job.ended_at = datetime.now(UTC)
        job.crashes += 1  # only asked for when the run has not ended, and then it was a crash
        if self.on_exit is not None:
            # Told after this task is done, so that whoever asks then is not told that it lives.
            asyncio.get_running_loop().call_soon(self.on_exit, job.run)

    async def _run_process(self, job: _Job) -> int:
        folder = self.work_dir(job.run)
        log = await asyncio.to_thread(_open_log, folder)
        command = [sys.executable, str(_TETHER), str(os.getpid()), *self._program, job.run.spec.kind]
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                env=self._environment_of(job.run),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the parent, which then ends it politely
            )
        finally:
            os.close(log)
        try:
            remember(folder / PROCESS_FILE, process.pid)
            return await process.wait()
        except asyncio.CancelledError:
            await self._end(process)
            raise

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        if process.returncode is not None:
            return
        send(process.pid, signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), self._grace)
        except TimeoutError:
            send(process.pid, signal.SIGKILL)
            await process.wait()

    async def _end_orphan(self, work_dir: Path) -> None:
        """End a process of an earlier owner: two must never write one folder."""
        file = work_dir / PROCESS_FILE
        deadline = asyncio.get_running_loop().time() + self._grace
        while (pid := remembered(file)) is not None:
            late = asyncio.get_running_loop().time() > deadline
            send(pid, signal.SIGKILL if late else signal.SIGTERM)
            await asyncio.sleep(_ORPHAN_POLL_SECONDS)

    def _environment_of(self, run: RunView) -> dict[str, str]:
        own = {"HMI_RUN_ID": run.id, "HMI_WORK_DIR": str(self.work_dir(run))}
        inherited = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_CHILDREN}
        return {**inherited, **self._environment, **own}


def _open_log(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    return os.open(folder / LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
