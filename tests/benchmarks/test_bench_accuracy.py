"""The accuracy benchmark: learning rates are chosen on pilots, and finished cells are not run again."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hmi_bench.accuracy.benchmark import METHODS, Outcome, Preset, chosen, run_study, write_report
from hmi_bench.accuracy.full_fine_tuning import Recipe
from hmi_bench.accuracy.halving import changes_by_halving
from hmi_bench.accuracy.tasks import Task, folder_of_most_tasks, read_tasks
from hmi_runtime.training.backbone import BatchFunction
from hmi_runtime.training.examples import IGNORED, Examples
from hmi_runtime.training.fine_tuning import TaskDataset
from hmi_runtime.training.labelled_data import LabelledRows, Rows, TaggedRows
from hmi_runtime.training.teacher import TokenInputs

PRESET = Preset("small", 10, 10, 1, (0.1, 0.2), (0.3, 0.6), 1, 0)
BEST_RATE = {"short": 0.2, "tags": 0.1}


def a_task(name: str, words: int, *, is_token: bool = False) -> Task:
    text = " ".join(["word"] * words)
    rows: Rows = LabelledRows([text], ["yes"])
    if is_token:
        rows = TaggedRows.of([text.split()], [["O"] * words])
    return Task(name, "trade", ["O"] if is_token else ["no", "yes"], rows, rows, rows)


class Method:
    """Replaces training: validation is best at the rate of ``BEST_RATE``."""

    def __init__(self) -> None:
        self.runs: list[tuple[str, float]] = []

    def __call__(self, task: Task, recipe: Recipe, seed: int) -> tuple[float, int, float, dict[str, float]]:
        self.runs.append((task.name, recipe.learning_rate))
        return (0.9 if recipe.learning_rate == BEST_RATE.get(task.name) else 0.5), 1, 0.7, {}


def test_only_the_smallest_task_of_a_kind_tries_every_rate(tmp_path: Path) -> None:
    method = Method()
    tasks = [a_task("long", 9), a_task("short", 3), a_task("tags", 5, is_token=True)]
    outcomes = run_study(tasks, {"full": method}, PRESET, tmp_path)
    assert method.runs == [("short", 0.1), ("short", 0.2), ("tags", 0.1), ("tags", 0.2), ("long", 0.2)]
    assert {o.task: o.learning_rate for o in chosen(outcomes)} == {"short": 0.2, "tags": 0.1, "long": 0.2}


def test_a_study_resumes_from_the_cells_on_file(tmp_path: Path) -> None:
    tasks = [a_task("short", 3), a_task("long", 9)]
    first, second = Method(), Method()
    run_study(tasks, {"full": first}, PRESET, tmp_path, lambda task, method: task.name == "short")
    outcomes = run_study(tasks, {"full": second}, PRESET, tmp_path)
    assert second.runs == [("long", 0.2)]
    assert len(outcomes) == 3


def an_outcome(method: str, test: float, before_the_cut: float | None = None) -> Outcome:
    detail = {} if before_the_cut is None else {"test_before_the_cut": before_the_cut, "rank": 8.0}
    return Outcome("short", "trade", method, 0, 0.1, 1, 0.5, test, 1.0, detail)


def test_the_parts_of_a_loss_add_up_to_it(tmp_path: Path) -> None:
    outcomes = [
        an_outcome("full", 0.90),
        an_outcome("unsplit", 0.87, 0.88),
        an_outcome("bridgeless", 0.79, 0.80),
        an_outcome("untaught", 0.84, 0.85),
        an_outcome("hplm", 0.86, 0.87),
    ]
    assert {outcome.method for outcome in outcomes} == set(METHODS)
    row = write_report(outcomes, PRESET, tmp_path).splitlines()[2]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:7] == ["90.0", "87.0", "79.0", "84.0", "86.0", "4.0"]
    assert cells[7:12] == ["2.0", "8.0", "-5.0", "-2.0", "1.0"]


def test_what_half_precision_changes_has_a_table_of_its_own(tmp_path: Path) -> None:
    outcome = an_outcome("hplm", 0.86)
    outcome.detail.update(
        stored_bytes=742_000.0,
        float32_bytes=1_418_000.0,
        predictions=450,
        predictions_changed_by_halving=2,
        probability_changed_by_halving=0.0021,
    )
    row = write_report([outcome], PRESET, tmp_path).splitlines()[-1]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == ["short", "hplm", "742", "0.523", "450", "2", "2.1e-03"]


def test_half_precision_is_compared_on_scored_tokens_only() -> None:
    rows = TaggedRows.of([["a", "b"], ["c"]], [["O", "X"], ["O"]])
    ids = [np.array([1, 5, 6, 2]), np.array([1, 7, 2])]
    targets = [np.array([IGNORED, 0, 1, IGNORED]), np.array([IGNORED, 0, IGNORED])]
    examples = Examples(ids, targets, rows, ["O", "X"], [np.array([0, 1]), np.array([0])])
    dataset = TaskDataset(TokenInputs(ids, 0), examples)
    trained = torch.tensor([[9.0, 0.0], [2.0, 0.0], [0.1, 0.0], [0.0, 9.0]])  # (T, n)

    def logits(of_tokens: Tensor) -> BatchFunction:
        return lambda tokens, mask: of_tokens[: tokens.shape[1]].expand(len(tokens), -1, -1)

    stored = trained.clone()
    stored[0], stored[2] = torch.tensor([0.0, 9.0]), torch.tensor([0.0, 0.1])
    found = changes_by_halving(logits(stored), logits(trained), dataset)
    assert (found.predictions, found.other_predictions) == (3, 1)
    expected = torch.tensor([0.1, 0.0]).softmax(-1)
    assert found.probability == pytest.approx(float(expected[0] - expected[1]), abs=1e-6)


def test_figures_of_methods_that_have_not_run_are_dashes(tmp_path: Path) -> None:
    row = write_report([an_outcome("full", 0.9), an_outcome("hplm", 0.86, 0.87)], PRESET, tmp_path)
    cells = [cell.strip() for cell in row.splitlines()[2].strip("|").split("|")]
    assert cells[7:12] == ["–", "–", "–", "–", "1.0"]


def test_rows_that_are_not_used_are_tested() -> None:
    def rows(split: str, count: int) -> LabelledRows:
        return LabelledRows([f"{split} {number}" for number in range(count)], ["yes"] * count)

    task = Task("one", "trade", ["no", "yes"], rows("train", 9), rows("validation", 5), rows("test", 4))
    drawn = task.with_unused_rows(train=3, validation=2, test=100, seed=1)
    parts = [list(part.inputs()) for part in (drawn.train, drawn.validation, drawn.test)]
    assert [len(part) for part in parts] == [3, 2, 13]
    every = [text for part in (task.train, task.validation, task.test) for text in part.inputs()]
    assert sorted(text for part in parts for text in part) == sorted(every)
    assert drawn.train.inputs() != task.with_unused_rows(3, 2, 100, 2).train.inputs()
    assert len(task.with_unused_rows(3, 2, 6, 1).test) == 6


def test_folders_without_labels_are_no_tasks(tmp_path: Path) -> None:
    kinds = {"labelled": '{"text": "a", "label": "b"}', "generated": '{"prompt": "a", "completion": "b"}'}
    for name, row in kinds.items():
        (tmp_path / name).mkdir()
        for split in ("train", "validation", "test"):
            (tmp_path / name / f"{split}.jsonl").write_text(row)
    assert [task.name for task in read_tasks(tmp_path, {})] == ["labelled"]


def test_the_folder_of_most_tasks_is_below_the_data(tmp_path: Path) -> None:
    def add(*names: str) -> None:
        for name in names:
            (tmp_path / name).mkdir(parents=True)
            (tmp_path / name / "train.jsonl").touch()

    add("a", "b", "c", "one/d")
    assert folder_of_most_tasks(tmp_path) is None
    add("two/e", "two/f")
    assert folder_of_most_tasks(tmp_path) == tmp_path / "two"
