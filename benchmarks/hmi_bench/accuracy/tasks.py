"""Tasks: folders with train, validation and test rows, and the domains they belong to."""

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from hmi_api.resources.task_adapter import TaskType
from hmi_runtime.training.labelled_data import LabelledRows, Rows, TaggedRows, labels_in

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Task:
    """One task; ``domain`` names the corpus that it shares with other tasks."""

    name: str
    domain: str
    labels: list[str]
    train: Rows
    validation: Rows
    test: Rows

    @property
    def type(self) -> TaskType:
        """Whether texts or words are labelled."""
        tagged = isinstance(self.train, TaggedRows)
        return TaskType.TOKEN_CLASSIFICATION if tagged else TaskType.SEQUENCE_CLASSIFICATION

    def limited(self, train: int, test: int, seed: int) -> "Task":
        """Return the task with at most ``train`` and ``test`` rows; only the training rows vary by seed."""
        return replace(
            self,
            train=_sample(self.train, train, seed),
            validation=_sample(self.validation, max(100, test // 2), 0),
            test=_sample(self.test, test, 0),
        )


def read_tasks(root: Path, domains: dict[str, str]) -> list[Task]:
    """Read every task folder under ``root``.

    ``domains`` maps a task's path to its domain. Other tasks belong to the domain of their parent folder; a
    task directly under ``root`` has a domain of its own.
    """
    folders = sorted(path.parent for path in root.rglob("train.jsonl"))
    return [_read_task(folder, folder.relative_to(root), domains) for folder in folders]


def corpus(tasks: Iterable[Task], domain: str) -> list[str]:
    """Return a domain's unlabelled text: its tasks' training rows, each text once."""
    seen = dict.fromkeys(text for task in tasks if task.domain == domain for text in task.train.inputs())
    return list(seen)


def _read_task(folder: Path, relative: Path, domains: dict[str, str]) -> Task:
    name, parent = relative.as_posix(), relative.parent.as_posix()
    splits = [_read_rows(folder / f"{split}.jsonl") for split in SPLITS]
    labels = sorted(set().union(*map(labels_in, splits)))
    return Task(name, domains.get(name, parent if parent != "." else name), labels, *splits)


def _read_rows(path: Path) -> Rows:
    raw = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if raw and "tokens" in raw[0]:
        return TaggedRows.of([row["tokens"] for row in raw], [row["tags"] for row in raw])
    return LabelledRows([row["text"] for row in raw], [row["label"] for row in raw])


def _sample(rows: Rows, limit: int, seed: int) -> Rows:
    if len(rows) <= limit:
        return rows
    return rows.take(sorted(random.Random(seed).sample(range(len(rows)), limit)))  # noqa: S311 - not secret
