"""How much of a GPU's copies to the device is hidden behind its kernels, from a profiler's trace."""

import itertools
import json
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Span = tuple[float, float]
"""Start and end, in microseconds."""


@dataclass(frozen=True)
class Overlap:
    """Copies from host to device: how many, their microseconds, and those with a kernel at the same time."""

    copies: int
    copy_microseconds: float
    hidden_microseconds: float

    @property
    def hidden_share(self) -> float:
        """Share of the copies' time that is hidden, 0 to 1; 1 without copies."""
        return self.hidden_microseconds / self.copy_microseconds if self.copy_microseconds else 1.0


def read_overlap(trace: Path) -> Overlap:
    """Return the overlap in a trace that ``torch.profiler`` exported in Chrome's format."""
    events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    copies = [_span(e) for e in events if e.get("cat") == "gpu_memcpy" and "HtoD" in e.get("name", "")]
    kernels = [_span(e) for e in events if e.get("cat") == "kernel"]
    return overlap(copies, kernels)


def overlap(copies: Sequence[Span], kernels: Sequence[Span]) -> Overlap:
    """Return how much of the time of ``copies`` at least one of ``kernels`` runs; they may overlap."""
    copying, computing = merge(copies), merge(kernels)
    ends = [end for _, end in computing]
    hidden = 0.0
    for start, end in copying:
        for kernel_start, kernel_end in itertools.islice(computing, bisect_right(ends, start), None):
            if kernel_start >= end:
                break
            hidden += min(end, kernel_end) - max(start, kernel_start)
    return Overlap(len(copies), sum(end - start for start, end in copying), hidden)


def merge(spans: Iterable[Span]) -> list[Span]:
    """Return the union of ``spans`` as disjoint ones, in order."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _span(event: dict[str, Any]) -> Span:
    return float(event["ts"]), float(event["ts"]) + float(event["dur"])
