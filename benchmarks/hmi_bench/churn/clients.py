"""Clients that send one request at a time and compare every answer with the reference."""

import itertools
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from hmi_api.internal.inference import InferRow, RowResult
from hmi_bench.churn.history import Generation, History
from hmi_runtime.serving.pipeline import Pipeline

TOLERANCE = 0.02
"""Largest difference of a probability's logarithm from the reference's; tables are float16."""

log = logging.getLogger(__name__)
_TIMEOUT = 400.0
_LOGGED_ROWS = 50_000
_MOST_NAMED = 20
_NO_ROOM = "HostBudgetFull"
"""Clients use more adapters at once than the cache holds, so on a busy machine one may wait too long."""


@dataclass
class Progress:
    """Rows to answer, and changes that keep pace with them. Thread-safe.

    Clients wait when changes fall behind, so that a run of so many rows has so many changes.
    """

    rows: int
    rows_a_change: int
    answered: int = 0
    changes: int = 0
    _claimed: int = 0
    _failed: bool = False
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def claim(self, rows: int) -> int:
        """Return how many of ``rows`` a client may send next; 0 at the end."""
        with self._changed:
            while not self._is_over() and (
                self._claimed >= self.rows or self.answered > self.rows_a_change * (self.changes + 1)
            ):
                self._changed.wait()
            if self._is_over():
                return 0
            claimed = min(rows, self.rows - self._claimed)
            self._claimed += claimed
            return claimed

    def settle(self, claimed: int, answered: int) -> None:
        """Count answered rows of a claim; the others are sent again, by any client."""
        with self._changed:
            before, self.answered = self.answered, self.answered + answered
            self._claimed -= claimed - answered
            self._changed.notify_all()
        if before // _LOGGED_ROWS != self.answered // _LOGGED_ROWS:
            log.info("%d rows are answered, %d changes made", self.answered, self.changes)

    def wait_for_next_change(self) -> bool:
        """Wait until the next change is due; False at the end."""
        with self._changed:
            while not self._is_over() and self.answered < self.rows_a_change * self.changes:
                self._changed.wait()
            return not self._is_over()

    def count_change(self) -> None:
        """Count a change that was made."""
        with self._changed:
            self.changes += 1
            self._changed.notify_all()

    def fail(self) -> None:
        """End the run: a client or the changer has failed."""
        with self._changed:
            self._failed = True
            self._changed.notify_all()

    def _is_over(self) -> bool:
        return self._failed or self.answered >= self.rows


class Checker:
    """Compares answers with the reference, and counts."""

    def __init__(self, history: History, grace: float) -> None:
        """``grace``: seconds that a replaced version stays loaded."""
        self.refused: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.wrong_count = 0
        self.largest_difference = 0.0
        self._history = history
        self._grace = grace
        self._lock = threading.Lock()

    def check(self, row: InferRow, text: int, submitted: float, result: RowResult) -> bool:
        """Return whether a row has an answer; count it as wrong unless it is one that may be given."""
        allowed = self._history.allowed(row.adapter, submitted)
        if result.error is not None:
            reason = result.error.reason
            expected = (
                reason == _NO_ROOM
                or (reason in ("NotLoaded", "NotRegistered") and None in allowed)
                or (
                    reason == "NotRegistered"
                    and self._history.retired_before_answer(row.adapter, submitted, self._grace)
                )
            )
            with self._lock:
                self.refused[reason] += 1
            if not expected:
                self._count_wrong(f"{row.adapter}: {reason}: {result.error.message}")
            return False
        difference = min(
            (
                difference_from(result, generation, text)
                for generation in allowed
                if generation is not None and generation.serving.version == result.version
            ),
            default=float("inf"),
        )
        with self._lock:
            if difference <= TOLERANCE:
                self.largest_difference = max(self.largest_difference, difference)
        if difference > TOLERANCE:
            names = [g.serving.version if g else "none" for g in allowed]
            self._count_wrong(
                f"{row.adapter}@{result.version}, text {text}: differs by {difference}; allowed: {names}"
            )
        return True

    def _count_wrong(self, description: str) -> None:
        with self._lock:
            self.wrong_count += 1
            if len(self.wrong) < _MOST_NAMED:
                self.wrong.append(description)
                log.error("wrong: %s", description)


def difference_from(result: RowResult, generation: Generation, text: int) -> float:
    """Return the largest difference of a logarithm of a probability from a generation's reference."""
    if len(result.scores) != generation.answers.shape[1]:
        return float("inf")
    found = torch.tensor(result.scores).log()
    difference = (found - generation.answers[text]).abs().nan_to_num(torch.inf)
    return float(difference.amax())


@dataclass(frozen=True)
class Client:
    """One client. Popularity follows Zipf's law: the adapter of rank r gets a share of 1 / r."""

    number: int
    pipeline: Pipeline
    keys: Sequence[str]
    texts: Sequence[str]
    rows_a_request: int
    fan_out: bool
    """Whether its requests are one text for several adapters; else several texts for one adapter."""

    def run(self, progress: Progress, checker: Checker) -> None:
        """Send requests until all rows are answered."""
        source = random.Random(self.number)  # noqa: S311 - no secrets
        shares = list(itertools.accumulate(1 / rank for rank in range(1, len(self.keys) + 1)))
        try:
            while claimed := progress.claim(3 if self.fan_out else self.rows_a_request):
                if self.fan_out:
                    keys = source.sample(self.keys, claimed)
                    texts = [source.randrange(len(self.texts))] * claimed
                else:
                    keys = source.choices(self.keys, cum_weights=shares) * claimed
                    texts = [source.randrange(len(self.texts)) for _ in range(claimed)]
                answered = self._send(keys, texts, checker)
                progress.settle(claimed, answered)
        except BaseException:
            progress.fail()
            raise

    def _send(self, keys: Sequence[str], texts: Sequence[int], checker: Checker) -> int:
        rows = [InferRow(adapter=key, text=self.texts[text]) for key, text in zip(keys, texts, strict=True)]
        submitted = time.monotonic()
        results = self.pipeline.submit(rows).result(_TIMEOUT)
        return sum(
            checker.check(row, text, submitted, result)
            for row, text, result in zip(rows, texts, results, strict=True)
        )
