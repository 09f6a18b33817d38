"""The accuracy benchmark: learning rates are chosen on pilots, and finished cells are not run again."""

from pathlib import Path

from hmi_bench.accuracy.benchmark import METHODS, Outcome, Preset, chosen, run_study, write_report
from hmi_bench.accuracy.full_fine_tuning import Recipe
from hmi_bench.accuracy.tasks import Task
from hmi_runtime.training.labelled_data import LabelledRows, Rows, TaggedRows

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


def test_figures_of_methods_that_have_not_run_are_dashes(tmp_path: Path) -> None:
    row = write_report([an_outcome("full", 0.9), an_outcome("hplm", 0.86, 0.87)], PRESET, tmp_path)
    cells = [cell.strip() for cell in row.splitlines()[2].strip("|").split("|")]
    assert cells[7:12] == ["–", "–", "–", "–", "1.0"]
