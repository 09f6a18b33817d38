"""Timing several ways of doing one thing in turns, so that changes of the machine's speed affect all."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Median and 90th percentile of the seconds of one way, at one size (rows or tokens)."""

    name: str
    size: int
    median: float
    p90: float


def time_in_turns(ways: Mapping[str, Callable[[], object]], size: int, *, rounds: int) -> list[Timing]:
    """Call every way once a round, after one call to warm up; return the timing of each."""
    return [
        Timing(name, size, statistics.median(seconds), percentile(seconds, 0.9))
        for name, seconds in seconds_in_turns(ways, rounds=rounds).items()
    ]


def seconds_in_turns(
    ways: Mapping[str, Callable[[], object]], *, rounds: int, warmups: int = 1
) -> dict[str, list[float]]:
    """Call every way once a round, in a different order each round; return the seconds of each by name.

    ``warmups`` calls of each way come first and are not counted.
    """
    names = list(ways)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with torch.inference_mode():
        for way in ways.values():
            for _ in range(warmups):
                way()
        for turn in range(rounds):
            shift = turn % len(names)
            for name in (*names[shift:], *names[:shift]):
                seconds[name].append(seconds_of(ways[name]))
    return seconds


def seconds_of(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest of ``values`` that is at least as large as ``share`` (0 to 1) of them."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
