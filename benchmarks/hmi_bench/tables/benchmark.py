"""Run both contenders in turns and report how their throughput compares."""

import logging
import multiprocessing
import os
import shutil
import statistics
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

from hmi_bench.results import table as markdown
from hmi_bench.results import write_json
from hmi_bench.tables.contender import Contender, Round, TablesPlan, write_table
from hmi_bench.tables.memory_limit import MemoryGroup, drop_file_cache, memory_group
from hmi_runtime.tables.table import TABLE_FILE

log = logging.getLogger(__name__)
_ROOM = 128 << 20  # bytes beside the budget, for what a batch needs and for pages that are being read
_WHOLE, _PART = "all in memory", "a part in memory"


def _serve(pipe: Connection, plan: TablesPlan, folder: Path, share: float, drop: bool) -> None:
    """Run one contender in a process of its own: each message is an instruction or a seed."""
    contender = Contender(plan)
    pipe.send("made")
    pipe.recv()
    contender.open(folder, share)
    pipe.send("opened")
    while (seed := pipe.recv()) is not None:
        pipe.send(contender.run(seed, drop_after_batch=folder if drop else None))


class _Worker:
    """A contender in another process."""

    def __init__(
        self, plan: TablesPlan, folder: Path, share: float, group: MemoryGroup | None, *, limited: bool
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        drop = limited and group is None
        self._process = context.Process(target=_serve, args=(other, plan, folder, share, drop), daemon=True)
        self._process.start()
        self.limit = 0
        if limited and group is not None and self._process.pid is not None:
            group.add(self._process.pid)
        self._pipe.recv()
        log.info("made the layers of a contender")
        if limited and group is not None:
            row_bytes = 3 * plan.config.width * 2
            self.limit = group.used + int(share * plan.windows) * row_bytes + 29 * plan.windows + _ROOM
            group.limit(self.limit)
        self._pipe.send("open")
        self._pipe.recv()
        log.info("opened a table with %.0f %% of it in memory", 100 * share)

    def run(self, seed: int) -> Round:
        self._pipe.send(seed)
        done: Round = self._pipe.recv()
        return done

    def stop(self) -> None:
        self._pipe.send(None)
        self._process.join()


class _InProcess:
    """A contender in this process, without a limit, for tests."""

    limit = 0

    def __init__(self, plan: TablesPlan, folder: Path, share: float) -> None:
        self._contender = Contender(plan)
        self._contender.open(folder, share)

    def run(self, seed: int) -> Round:
        return self._contender.run(seed)

    def stop(self) -> None:
        pass


def run_tables(out: Path, plan: TablesPlan) -> str:
    """Measure, write JSON to ``out`` and return a report in Markdown."""
    if plan.folder is not None:
        plan.folder.mkdir(parents=True, exist_ok=True)
        return _measure(out, plan, plan.folder)
    with TemporaryDirectory() as folder:
        return _measure(out, plan, Path(folder))


def _measure(out: Path, plan: TablesPlan, folder: Path) -> str:
    copies = {name: folder / name.replace(" ", "-") for name in (_PART, _WHOLE)}
    if not all((copy / TABLE_FILE).exists() for copy in copies.values()):
        _write_copies(copies, plan)
    try:
        with memory_group() as group:
            workers: dict[str, _Worker | _InProcess]
            if plan.processes:
                workers = {
                    _PART: _Worker(plan, copies[_PART], plan.share, group, limited=True),
                    _WHOLE: _Worker(plan, copies[_WHOLE], 1.0, None, limited=False),
                }
            else:
                shares = {_PART: plan.share, _WHOLE: 1.0}
                workers = {name: _InProcess(plan, copies[name], share) for name, share in shares.items()}
            rounds: dict[str, list[Round]] = {name: [] for name in workers}
            for seed in range(plan.rounds + 1):
                for name in sorted(workers, reverse=bool(seed % 2)):
                    done = workers[name].run(seed)
                    log.info("round %d, %s: %.1f s", seed, name, done.seconds)
                    if seed:  # the first warms up
                        rounds[name].append(done)
            for worker in workers.values():
                worker.stop()
            limit, version = workers[_PART].limit, group.version if group else None
    finally:
        if not plan.keep:
            for copy in copies.values():
                shutil.rmtree(copy)
    return _report(out, plan, rounds, limit, version)


def _write_copies(copies: Mapping[str, Path], plan: TablesPlan) -> None:
    for copy in copies.values():
        copy.mkdir(exist_ok=True)
    write_table(copies[_PART], plan)
    shutil.copyfile(copies[_PART] / TABLE_FILE, copies[_WHOLE] / TABLE_FILE)
    for copy in copies.values():
        with (copy / TABLE_FILE).open("rb+") as written:
            os.fsync(written.fileno())  # pages that are not on the disk yet would stay in the page cache
        drop_file_cache(copy / TABLE_FILE)


def _report(
    out: Path, plan: TablesPlan, rounds: dict[str, list[Round]], limit: int, version: int | None
) -> str:
    rows = plan.batch * plan.batches
    ratio = statistics.median(
        whole.seconds / part.seconds for whole, part in zip(rounds[_WHOLE], rounds[_PART], strict=True)
    )
    shown = [_line(name, rounds[name], rows, plan.batches) for name in (_WHOLE, _PART)]
    how = (
        f"a control group of version {version} with {limit / 1e9:.2f} GB"
        if version
        else "dropping the file's page cache after each batch: control groups are not allowed here"
    )
    write_json(
        out / "tables.json",
        plan={"windows": plan.windows, "share": plan.share, "precision": plan.precision},
        limited_by=how,
        ratio=ratio,
        contenders=shown,
    )
    return (
        f"{markdown(shown)}\n\nThroughput with {plan.share:.0%} in memory / all in memory: {ratio:.3f} "
        f"(median of {plan.rounds} rounds in turns). Memory is limited by {how}."
    )


def _line(name: str, rounds: Sequence[Round], rows: int, batches: int) -> dict[str, object]:
    count = len(rounds) * batches
    found = sum(one.in_memory + one.on_disk for one in rounds)
    return {
        "table": name,
        "rows a second": rows / statistics.median(one.seconds for one in rounds),
        "ms a batch": 1e3 * statistics.median(one.seconds for one in rounds) / batches,
        "ms of staging a batch": 1e3 * sum(one.staging_seconds for one in rounds) / count,
        "windows found in memory": sum(one.in_memory for one in rounds) / found,
        "rows read from disk a batch": sum(one.on_disk for one in rounds) / count,
        "KB of them": sum(one.bytes_read for one in rounds) / count / 1e3,
        "KB the disk read": sum(one.device_bytes for one in rounds) / count / 1e3,
        "rows admitted a batch": sum(one.admitted for one in rounds) / count,
    }
