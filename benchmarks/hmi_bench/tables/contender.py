"""One side of the comparison: a table of which a part is in memory, and the layers above it."""

import queue
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hmi_api.resources.domain import OnMiss, TableDtype
from hmi_bench.serving.hmi import BERT_BASE, Shared, random_adapter
from hmi_bench.tables.memory_limit import drop_file_cache
from hmi_bench.texts import text_lengths
from hmi_runtime.adapters.executor import UpperExecutor
from hmi_runtime.adapters.frozen import Precision
from hmi_runtime.adapters.heads import run_heads
from hmi_runtime.adapters.kernels import default_kernel
from hmi_runtime.adapters.slot_pool import SlotLimits, SlotPool
from hmi_runtime.cache.tiers import Tier
from hmi_runtime.models.architecture import EncoderConfig
from hmi_runtime.models.packing import Int64s, pad_tokens
from hmi_runtime.tables.index import HashIndex
from hmi_runtime.tables.lookup import TreeLookup
from hmi_runtime.tables.table import TABLE_FILE, TableWriter
from hmi_runtime.tables.tiers import TableEvents, TieredTable

_DIGEST = "sha256:" + "0" * 64
_RANK = 16
_WRITTEN_AT_ONCE = 4096  # rows
_READ_AT_ONCE = 8 << 20  # bytes


@dataclass(frozen=True)
class TablesPlan:
    """What to measure; ``folder`` is where the table is written, on the disk in question."""

    windows: int = 2_000_000
    share: float = 0.1
    """Part of the table's rows that the budget has room for."""
    batch: int = 32
    batches: int = 12
    """Of a round."""
    rounds: int = 5
    exponent: float = 1.0
    """Of the Zipf law by which windows are drawn; the table has them in the order of their frequency."""
    precision: Precision = "int8"
    folder: Path | None = None
    keep: bool = False
    """Leave the table in ``folder``, and use it if it is there already."""
    threads: int = 2
    processes: bool = True
    """Run each contender in a process of its own; without, nothing limits the memory."""
    config: EncoderConfig = BERT_BASE


@dataclass
class Found(TableEvents):
    """What a table's events sum up to."""

    rows: Counter[Tier] = field(default_factory=Counter)
    admitted: int = 0
    read: int = 0

    def rows_found(self, tier: Tier, rows: int) -> None:
        """Count rows of a tier."""
        self.rows[tier] += rows

    def bytes_read(self, count: int) -> None:
        """Count bytes read."""
        self.read += count

    def rows_admitted(self, tier: Tier, rows: int) -> None:
        """Count admitted rows."""
        self.admitted += rows


@dataclass(frozen=True)
class Round:
    """Some batches one after another, the next one staged while one computes."""

    seconds: float
    staging_seconds: float
    in_memory: int
    on_disk: int
    admitted: int
    bytes_read: int
    """Bytes of rows that were not in memory."""
    device_bytes: int
    """Bytes that this process had the disk read, in whole pages, as the kernel counts them."""


def write_table(folder: Path, plan: TablesPlan) -> None:
    """Write a table of random windows with random values, most frequent first by the plan's Zipf law."""
    random = torch.Generator().manual_seed(1)
    vocab = plan.config.vocab_size
    drawn = torch.randint(0, (vocab + 1) ** 3, (plan.windows + plan.windows // 10 + 10,), generator=random)
    keys = torch.unique(drawn)
    keys = keys[torch.randperm(len(keys), generator=random)][: plan.windows]
    ranks = torch.arange(1, plan.windows + 1, dtype=torch.float64)
    counts = (1e9 / ranks**plan.exponent).long() + 1
    writer = TableWriter(
        folder,
        keys,
        counts,
        width=plan.config.width,
        dtype=TableDtype.FLOAT16,
        vocab_size=vocab,
        layers_digest=_DIGEST,
        index=HashIndex.build(keys),
    )
    values = (torch.randn(_WRITTEN_AT_ONCE, 3, plan.config.width, generator=random) * 0.3).half()
    for start in range(0, plan.windows, _WRITTEN_AT_ONCE):
        rows = min(_WRITTEN_AT_ONCE, plan.windows - start)
        writer.write_encoded(start, values.roll(start // _WRITTEN_AT_ONCE, 0)[:rows], None)
    writer.close()


class Contender:
    """One process's part: a table of which ``share`` is in memory, and the upper layers with adapters."""

    def __init__(self, plan: TablesPlan) -> None:
        """Make the layers and the adapters, without a table."""
        torch.set_num_threads(plan.threads)
        self._plan = plan
        self._shared = Shared.make(plan.config)
        kernel = default_kernel(plan.precision, upper=self._shared.upper)
        limits = SlotLimits(max_rank=_RANK, dense_heads=False, dtype=kernel.slot_dtype)
        pool = SlotPool(self._shared.upper, plan.batch, limits, torch.device("cpu"))
        for slot in range(plan.batch):
            pool.write(slot, random_adapter(self._shared.upper, _RANK, 2 + slot % 14, seed=slot).as_stored())
        self._executor = UpperExecutor(self._shared.upper, pool, kernel)
        self._events = Found()
        self._cumulated = np.cumsum(1 / np.arange(1, plan.windows + 1) ** plan.exponent)
        with torch.inference_mode():  # so that memory for a batch is taken before it is limited
            lengths = list(text_lengths(plan.batch))
            self._compute(torch.randn(sum(lengths), 3, plan.config.width), lengths)

    def open(self, folder: Path, share: float) -> None:
        """Open the table in ``folder``, whose pages are in the page cache only if ``share`` is 1."""
        table = TieredTable(folder, most_bytes=1 << 50, device=torch.device("cpu"), events=self._events)
        if share < 1:
            table.set_share(int(share * table.entries) * table.row_bytes)
            drop_file_cache(folder / TABLE_FILE)
        else:
            with (folder / TABLE_FILE).open("rb", buffering=0) as source:
                while source.read(_READ_AT_ONCE):
                    pass
        self._keys = table.whole.keys.clone()
        self._lookup = TreeLookup(
            [table], self._shared.layers, layers_digest=_DIGEST, on_miss=OnMiss.COMPUTE, recent_bytes=0
        )

    def run(self, seed: int, *, drop_after_batch: Path | None = None) -> Round:
        """Serve a round of batches that ``seed`` determines."""
        self._events.__init__()  # type: ignore[misc]
        batches = list(self._draw(seed))
        read_before = _device_bytes()
        staged: queue.Queue[tuple[Tensor, list[int]]] = queue.Queue(maxsize=1)
        staging = [0.0]

        def stage() -> None:
            with torch.inference_mode():
                for keys, lengths in batches:
                    started = time.perf_counter()
                    outputs = self._lookup.lookup(keys).outputs
                    staging[0] += time.perf_counter() - started
                    staged.put((outputs, lengths))
                    if drop_after_batch is not None:
                        drop_file_cache(drop_after_batch / TABLE_FILE)

        thread = threading.Thread(target=stage)
        started = time.perf_counter()
        thread.start()
        with torch.inference_mode():
            for _ in batches:
                self._compute(*staged.get())
        seconds = time.perf_counter() - started
        thread.join()
        found = self._events
        return Round(
            seconds=seconds,
            staging_seconds=staging[0],
            in_memory=found.rows[Tier.HOST],
            on_disk=found.rows[Tier.DISK],
            admitted=found.admitted,
            bytes_read=found.read,
            device_bytes=_device_bytes() - read_before,
        )

    def _compute(self, outputs: Tensor, lengths: list[int]) -> None:
        tokens = self._shared.layers.combine_tokens(outputs, lengths, self._executor.kernel.dtype)  # (N, D)
        hidden, mask = pad_tokens(tokens, lengths, max(lengths))  # (B, T, D), (B, T)
        slots = list(range(len(lengths)))
        hidden = self._executor.run(hidden, mask, slots)
        run_heads(self._executor.pool, hidden, mask, slots)

    def _draw(self, seed: int) -> Iterator[tuple[Int64s, list[int]]]:
        """Yield keys of windows (N,) and lengths (B,) of batches; each window is drawn by the Zipf law."""
        plan = self._plan
        random = np.random.default_rng(seed)
        keys = self._keys.numpy()
        for number in range(plan.batches):
            lengths = list(text_lengths(plan.batch, seed=1000 * seed + number))
            places = np.searchsorted(self._cumulated, random.random(sum(lengths)) * self._cumulated[-1])
            yield keys[np.minimum(places, plan.windows - 1)], lengths


def _device_bytes() -> int:
    for line in Path("/proc/self/io").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "read_bytes":
            return int(value)
    raise ValueError("/proc/self/io has no read_bytes")
