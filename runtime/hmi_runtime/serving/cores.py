"""The processor cores of a runtime: how many there are, and how batches that compute at once share them."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_TOKENS_A_THREAD = 256
"""A batch gets one more thread for each so many tokens: with fewer, threads wait longer than they compute."""

_SWITCH_SECONDS = 0.0002
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def available_cores(quota: Path = _CPU_QUOTA) -> int:
    """Return how many cores this process may use: by its affinity, and by its container's CPU limit.

    ``quota`` is cgroup v2's ``cpu.max``: "max" or microseconds, and the period that they are for.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        microseconds, period = quota.read_text().split()
    except (OSError, ValueError):  # no cgroup v2
        return cores
    return cores if microseconds == "max" else max(1, min(cores, int(microseconds) // int(period)))


def take_turns_often() -> None:
    """Let this process's threads hold Python's interpreter lock for 0.2 ms at a time, not for 5 ms.

    A thread that computes gives the lock away in every product. With 5 ms it waits longer for its return,
    behind threads that tokenise and answer, than it computes: in the scale benchmark, 0.2 ms answers a third
    more requests a second.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)


class Cores:
    """Shares ``total`` cores between the batches of all engines. Thread-safe.

    At most ``batches`` compute at once, under load each on one core: a batch's operations are so short that
    several threads wait for each other longer than they compute. A batch that finds cores idle gets up to
    half of them, so that a long text is quick while there is little to do, and the next batch finds a core.
    """

    def __init__(self, total: int, batches: int | None = None) -> None:
        """``batches`` is ``total`` when absent; 1 is for an accelerator, which runs one batch at a time."""
        self.batches = batches or total
        # An accelerator computes while the next batch is staged. A CPU has no core left for that, and a batch
        # that is formed later is larger.
        self.threads = self.batches if batches is None else self.batches + 1
        self._total = total
        self._free = total
        self._computing = 0
        self._changed = threading.Condition()

    @contextmanager
    def share(self, tokens: int) -> Iterator[int]:
        """Wait for a core; let this thread's torch operations use the yielded number of cores in the block.

        ``tokens`` is the batch's number of tokens, padding included.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._free > 0 and self._computing < self.batches)
            granted = max(1, min(self._free // 2, tokens // _TOKENS_A_THREAD))
            self._free -= granted
            self._computing += 1
        before = torch.get_num_threads()
        # torch keeps this number by thread (OpenMP): it changes nothing for batches of other threads.
        torch.set_num_threads(granted)
        try:
            yield granted
        finally:
            torch.set_num_threads(before)
            with self._changed:
                self._free += granted
                self._computing -= 1
                self._changed.notify_all()  # several cores may be free now, each for another batch

    def limit_staging(self) -> None:
        """Limit torch's operations of this thread outside of ``share`` to its part of the cores."""
        torch.set_num_threads(max(1, self._total // self.threads))
