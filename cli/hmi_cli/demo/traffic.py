"""Held-out rows sent through the gateway, all tenants mixed, and the scores of the predictions.

The metrics are computed here, not by the training code: they measure what tenants get.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, zip_longest
from pathlib import Path
from typing import Any

import httpx

from hmi_api.tag_schemes import TagScheme, entities
from hmi_cli.client import api_error
from hmi_cli.render.inference import Prediction, read_predictions

ROWS_PER_REQUEST = 8
IN_FLIGHT = 16
TIMEOUT_S = 120.0
Span = tuple[int, int, str]
"""First character, one past the last, label."""


def accuracy(truth: Sequence[str], guess: Sequence[str]) -> float:
    """Return the share of correct rows, 0 to 1."""
    return sum(a == b for a, b in zip(truth, guess, strict=True)) / len(truth) if truth else 0.0


def macro_f1(truth: Sequence[str], guess: Sequence[str]) -> float:
    """Return the mean of the labels' F1, 0 to 1."""
    labels = sorted(set(truth) | set(guess))
    return sum(_label_f1(truth, guess, label) for label in labels) / len(labels) if labels else 0.0


def _label_f1(truth: Sequence[str], guess: Sequence[str], label: str) -> float:
    pairs = list(zip(truth, guess, strict=True))
    both = sum(a == b == label for a, b in pairs)
    return f1(both, sum(a == label for a, _ in pairs), sum(b == label for _, b in pairs))


def entity_f1(truth: Sequence[set[Span]], guess: Sequence[set[Span]]) -> float:
    """Return the F1 of entities, 0 to 1: an entity is correct if its range and its label are."""
    both = sum(len(a & b) for a, b in zip(truth, guess, strict=True))
    return f1(both, sum(map(len, truth)), sum(map(len, guess)))


def f1(both: int, expected: int, predicted: int) -> float:
    """Return the harmonic mean of precision and recall."""
    return 2 * both / (expected + predicted) if expected + predicted else 0.0


def spans_of(words: Sequence[str], tags: Sequence[str]) -> set[Span]:
    """Return the entities of IOB2 tags, as ranges of the words joined by single spaces."""
    ends = list(accumulate(len(word) + 1 for word in words))
    return {
        (ends[start] - len(words[start]) - 1, ends[end - 1] - 1, kind)
        for start, end, kind in entities(tags, TagScheme.IOB2)
    }


@dataclass(frozen=True)
class HeldOutSet:
    """Held-out rows of one TaskAdapter, with their labels."""

    tenant: str
    model: str
    tokens: bool
    metric: str
    texts: tuple[str, ...]
    truth: tuple[Any, ...]
    """A label, or a set of spans, for each row."""


@dataclass
class HeldOutResult:
    """The predictions for one held-out set."""

    held_out: HeldOutSet
    predictions: dict[int, Prediction] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every row has a prediction."""
        return len(self.predictions) == len(self.held_out.texts)

    def score(self) -> float | None:
        """Return the metric over all rows; None if a prediction is missing."""
        if not self.complete:
            return None
        rows = [self.predictions[index] for index in range(len(self.held_out.texts))]
        if self.held_out.tokens:
            predicted = [{(found.start, found.end, found.label) for found in row.entities} for row in rows]
            return entity_f1(self.held_out.truth, predicted)
        scored = macro_f1 if self.held_out.metric == "macro_f1" else accuracy
        return scored(self.held_out.truth, [row.label for row in rows])


def read_held_out(adapter: dict[str, Any], tenant: str, data: Path) -> HeldOutSet:
    """Return the held-out rows of a TaskAdapter, from the folder of its name."""
    name = adapter["metadata"]["name"]
    tokens = adapter["spec"]["task"]["type"] == "TokenClassification"
    rows = [json.loads(line) for line in (data / name / "test.jsonl").read_text().splitlines()]
    gate = adapter["spec"].get("gate") or {}
    return HeldOutSet(
        tenant=tenant,
        model=name,
        tokens=tokens,
        metric=gate.get("metric") or ("entity_f1" if tokens else "accuracy"),
        texts=tuple(" ".join(row["tokens"]) if tokens else row["text"] for row in rows),
        truth=tuple(spans_of(row["tokens"], row["tags"]) if tokens else row["label"] for row in rows),
    )


async def send_all(server: str, keys: dict[str, str], sets: Sequence[HeldOutSet]) -> list[HeldOutResult]:
    """Send all rows, with the requests of all tenants mixed, and return the results."""
    results = [HeldOutResult(held_out) for held_out in sets]
    requests = [
        [(result, start) for start in range(0, len(result.held_out.texts), ROWS_PER_REQUEST)]
        for result in results
    ]
    mixed = [request for request in chain.from_iterable(zip_longest(*requests)) if request is not None]
    in_flight = asyncio.Semaphore(IN_FLIGHT)
    async with httpx.AsyncClient(base_url=server, timeout=TIMEOUT_S, trust_env=False) as client:
        await asyncio.gather(*(_send(client, in_flight, keys, result, start) for result, start in mixed))
    return results


async def _send(
    client: httpx.AsyncClient,
    in_flight: asyncio.Semaphore,
    keys: dict[str, str],
    result: HeldOutResult,
    start: int,
) -> None:
    held_out = result.held_out
    texts = list(held_out.texts[start : start + ROWS_PER_REQUEST])
    async with in_flight:
        try:
            response = await client.post(
                "/classify",
                json={"model": held_out.model, "input": texts},
                headers={"Authorization": f"Bearer {keys[held_out.tenant]}"},
            )
        except httpx.HTTPError as error:
            result.failures.append(f"{type(error).__name__}: {error}")
            return
    if response.is_error:
        result.failures.append(api_error(response).message)
        return
    for prediction in read_predictions(response.json()):
        if prediction.error:
            result.failures.append(prediction.error)
        else:
            result.predictions[start + prediction.index] = prediction
