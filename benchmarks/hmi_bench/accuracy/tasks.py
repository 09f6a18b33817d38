"""Tasks: folders with train, validation and test rows, and the domains they belong to."""

import json
import random
from collections import Counter
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

    def with_unused_rows(self, train: int, validation: int, test: int, seed: int) -> "Task":
        """Return the task with rows drawn by ``seed``, at most ``train`` and ``validation`` of them.

        Its test rows, at most ``test``, are drawn from all test rows and the unused training and validation
        rows.
        """
        order = random.Random(seed)  # noqa: S311 - not secret
        chosen, unused = _parted(self.train, train, order)
        chosen_on, unused_too = _parted(self.validation, validation, order)
        tested, _ = _parted(_joined(self.test, unused_too, unused), test, order)
        return replace(self, train=chosen, validation=chosen_on, test=tested)


def read_tasks(root: Path, domains: dict[str, str]) -> list[Task]:
    """Read every task folder under ``root`` whose rows have labels or tags; others are left out.

    ``domains`` maps a task's path to its domain. Other tasks belong to the domain of their parent folder; a
    task directly under ``root`` has a domain of its own.
    """
    folders = sorted(path.parent for path in root.rglob("train.jsonl") if _is_labelled(path))
    return [_read_task(folder, folder.relative_to(root), domains) for folder in folders]


def folder_of_most_tasks(data: Path) -> Path | None:
    """Return the folder below ``data`` with the most task folders, None if none has two."""
    parents = Counter(path.parent.parent for path in sorted(data.rglob("train.jsonl")))
    parents.pop(data, None)
    most = parents.most_common(1)
    return most[0][0] if most and most[0][1] > 1 else None


def corpus(tasks: Iterable[Task], domain: str) -> list[str]:
    """Return a domain's unlabelled text: its tasks' training rows, each text once."""
    seen = dict.fromkeys(text for task in tasks if task.domain == domain for text in task.train.inputs())
    return list(seen)


def _read_task(folder: Path, relative: Path, domains: dict[str, str]) -> Task:
    name, parent = relative.as_posix(), relative.parent.as_posix()
    splits = [_read_rows(folder / f"{split}.jsonl") for split in SPLITS]
    labels = sorted(set().union(*map(labels_in, splits)))
    return Task(name, domains.get(name, parent if parent != "." else name), labels, *splits)


def _is_labelled(path: Path) -> bool:
    with path.open(encoding="utf-8") as lines:
        return not json.loads(next(lines, "{}")).keys().isdisjoint(("label", "tags"))


def _read_rows(path: Path) -> Rows:
    raw = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if raw and "tokens" in raw[0]:
        return TaggedRows.of([row["tokens"] for row in raw], [row["tags"] for row in raw])
    return LabelledRows([row["text"] for row in raw], [row["label"] for row in raw])


def _sample(rows: Rows, limit: int, seed: int) -> Rows:
    if len(rows) <= limit:
        return rows
    return rows.take(sorted(random.Random(seed).sample(range(len(rows)), limit)))  # noqa: S311 - not secret


def _parted(rows: Rows, count: int, order: random.Random) -> tuple[Rows, Rows]:
    """Return ``count`` rows, or all, drawn by ``order``, and the others."""
    numbers = order.sample(range(len(rows)), len(rows))
    return rows.take(numbers[:count]), rows.take(numbers[count:])


def _joined(first: Rows, *others: Rows) -> Rows:
    """Return the rows of all, which have one type."""
    if isinstance(first, TaggedRows):
        tagged = [first, *(rows for rows in others if isinstance(rows, TaggedRows))]
        return TaggedRows.of(
            [row for rows in tagged for row in rows.words], [row for rows in tagged for row in rows.tags]
        )
    labelled = [first, *(rows for rows in others if isinstance(rows, LabelledRows))]
    return LabelledRows(
        [text for rows in labelled for text in rows.texts],
        [label for rows in labelled for label in rows.labels],
    )
