"""Tasks: folders with train, validation and test rows, and the domains they belong to."""

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

_Value = TypeVar("_Value")

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Rows:
    """Labelled rows: of texts with a label each, or of word lists with a tag a word."""

    texts: list[str]
    words: list[list[str]]
    labels: list[str]
    tags: list[list[str]]

    def __len__(self) -> int:
        return len(self.labels) or len(self.tags)

    def plain(self) -> list[str]:
        """Return each row as unlabelled text."""
        return self.texts or [" ".join(words) for words in self.words]


@dataclass(frozen=True)
class Task:
    """One task; ``domain`` names the corpus it shares with its neighbours."""

    name: str
    domain: str
    is_token: bool
    labels: list[str]
    train: Rows
    validation: Rows
    test: Rows

    def limited(self, train: int, test: int, seed: int) -> "Task":
        """Return the task with at most ``train`` and ``test`` rows, drawn by ``seed`` (test always alike)."""
        return replace(
            self,
            train=_draw(self.train, train, seed),
            validation=_draw(self.validation, max(100, test // 2), 0),
            test=_draw(self.test, test, 0),
        )


def read_tasks(root: Path, domains: dict[str, str]) -> list[Task]:
    """Read every task folder under ``root``.

    ``domains`` maps a task's path to its domain; a task that it does not name belongs to the domain of
    its parent folder, or to one of its own when it stands at the top.
    """
    folders = sorted(path.parent for path in root.rglob("train.jsonl"))
    return [_read_task(folder, folder.relative_to(root), domains) for folder in folders]


def corpus(tasks: Iterable[Task], domain: str) -> list[str]:
    """Return a domain's unlabelled text: its tasks' training rows, each text once."""
    seen = dict.fromkeys(text for task in tasks if task.domain == domain for text in task.train.plain())
    return list(seen)


def _read_task(folder: Path, relative: Path, domains: dict[str, str]) -> Task:
    name = relative.as_posix()
    train, validation, test = (_read_rows(folder / f"{split}.jsonl") for split in SPLITS)
    is_token = bool(train.tags)
    seen = {tag for row in train.tags for tag in row} if is_token else set(train.labels)
    parent = relative.parent.as_posix()
    domain = domains.get(name, parent if parent != "." else name)
    return Task(name, domain, is_token, sorted(seen), train, validation, test)


def _read_rows(path: Path) -> Rows:
    raw = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if raw and "tokens" in raw[0]:
        return Rows([], [row["tokens"] for row in raw], [], [row["tags"] for row in raw])
    return Rows([row["text"] for row in raw], [], [row["label"] for row in raw], [])


def _draw(rows: Rows, limit: int, seed: int) -> Rows:
    if len(rows) <= limit:
        return rows
    chosen = sorted(random.Random(seed).sample(range(len(rows)), limit))  # noqa: S311 - rows, not secrets

    def pick(values: list[_Value]) -> list[_Value]:
        return [values[index] for index in chosen] if values else []

    return Rows(pick(rows.texts), pick(rows.words), pick(rows.labels), pick(rows.tags))
