"""One mixed batch for all tenants: held-out rows, sent at once with every tenant's own key."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import httpx

from hmi_cli.client import refusal
from hmi_cli.demo.scores import Span, accuracy, entity_f1, macro_f1, spans_of
from hmi_cli.render.inference import Prediction, read_predictions

ROWS_PER_REQUEST = 8
IN_FLIGHT = 16
TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Task:
    """One TaskAdapter's held-out rows and what it should answer."""

    tenant: str
    model: str
    tokens: bool
    metric: str
    texts: tuple[str, ...]
    truth: tuple[Any, ...]
    """A label a row, or a set of spans a row."""


@dataclass
class Outcome:
    """What came back for a task."""

    task: Task
    predictions: dict[int, Prediction] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """True when every row has an answer."""
        return len(self.predictions) == len(self.task.texts)

    def score(self) -> float | None:
        """Return the task's metric over its held-out rows; None when an answer is missing."""
        if not self.complete:
            return None
        rows = [self.predictions[index] for index in range(len(self.task.texts))]
        if self.task.tokens:
            guess = [{(found.start, found.end, found.label) for found in row.entities} for row in rows]
            return entity_f1(self.task.truth, guess)
        scored = macro_f1 if self.task.metric == "macro_f1" else accuracy
        return scored(self.task.truth, [row.label for row in rows])


def read_task(adapter: dict[str, Any], tenant: str, data: Path) -> Task:
    """Return the task of a TaskAdapter, with the held-out rows in the folder of its name."""
    name = adapter["metadata"]["name"]
    tokens = adapter["spec"]["task"]["type"] == "TokenClassification"
    rows = [json.loads(line) for line in (data / name / "test.jsonl").read_text().splitlines()]
    gate = adapter["spec"].get("gate") or {}
    return Task(
        tenant=tenant,
        model=name,
        tokens=tokens,
        metric=gate.get("metric") or ("entity_f1" if tokens else "accuracy"),
        texts=tuple(" ".join(row["tokens"]) if tokens else row["text"] for row in rows),
        truth=tuple(_spans(row) if tokens else row["label"] for row in rows),
    )


def _spans(row: dict[str, Any]) -> set[Span]:
    return spans_of(row["tokens"], row["tags"])


async def send_all(server: str, keys: dict[str, str], tasks: Sequence[Task]) -> list[Outcome]:
    """Send all rows of all tasks, the tenants' requests mixed with one another, and gather the answers."""
    outcomes = [Outcome(task) for task in tasks]
    requests = [
        [(outcome, start) for start in range(0, len(outcome.task.texts), ROWS_PER_REQUEST)]
        for outcome in outcomes
    ]
    mixed = [request for request in chain.from_iterable(zip_longest(*requests)) if request is not None]
    gate = asyncio.Semaphore(IN_FLIGHT)
    async with httpx.AsyncClient(base_url=server, timeout=TIMEOUT_S, trust_env=False) as client:
        await asyncio.gather(*(_send(client, gate, keys, outcome, start) for outcome, start in mixed))
    return outcomes


async def _send(
    client: httpx.AsyncClient, gate: asyncio.Semaphore, keys: dict[str, str], outcome: Outcome, start: int
) -> None:
    task = outcome.task
    texts = list(task.texts[start : start + ROWS_PER_REQUEST])
    async with gate:
        try:
            response = await client.post(
                "/classify",
                json={"model": task.model, "input": texts},
                headers={"Authorization": f"Bearer {keys[task.tenant]}"},
            )
        except httpx.HTTPError as error:
            outcome.failures.append(f"{type(error).__name__}: {error}")
            return
    if response.is_error:
        outcome.failures.append(refusal(response).message)
        return
    for prediction in read_predictions(response.json()):
        if prediction.error:
            outcome.failures.append(prediction.error)
        else:
            outcome.predictions[start + prediction.index] = prediction
