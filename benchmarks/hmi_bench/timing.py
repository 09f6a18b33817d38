"""Timing several ways of doing one thing so that a drifting machine favours none."""

import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch


def seconds_in_turns(
    ways: Mapping[str, Callable[[], object]], *, rounds: int, warmups: int = 1
) -> dict[str, list[float]]:
    """Call every way once a round, in a different order each round; return each one's seconds by name.

    ``warmups`` calls of each way come before and are not counted.
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
                started = time.perf_counter()
                ways[name]()
                seconds[name].append(time.perf_counter() - started)
    return seconds


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest of ``values`` that at least ``share`` (0 to 1) of them do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
