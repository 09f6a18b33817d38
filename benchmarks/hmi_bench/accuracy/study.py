"""The study: every task, method, learning rate and seed is one cell, run once and kept in a file."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hmi_bench.accuracy.tasks import Task
from hmi_bench.accuracy.tuning import Recipe

log = logging.getLogger(__name__)


METHODS = ("full", "unsplit", "bridgeless", "untaught", "hplm")
"""From full fine-tuning to the hPLM, each nearer to it by one step."""


@dataclass(frozen=True)
class Preset:
    """How much is run: rows, epochs, learning rates to choose from, distillation steps, seeds.

    ``unlabelled_rows`` are what the hPLM's teacher labels; ``methods`` what is run where none are named.
    """

    name: str
    train_rows: int
    test_rows: int
    epochs: int
    full_rates: tuple[float, ...]
    upper_rates: tuple[float, ...]
    distillation_steps: int
    unlabelled_rows: int
    seeds: tuple[int, ...] = (0,)
    methods: tuple[str, ...] = METHODS


PRESETS = {
    "quick": Preset("quick", 400, 300, 4, (3e-4,), (1e-3,), 150, 200, methods=("full", "hplm")),
    "standard": Preset("standard", 800, 500, 6, (1e-4, 3e-4), (3e-4, 1e-3), 800, 2400),
    "full": Preset(
        "full", 10_000, 10_000, 10, (5e-5, 1e-4, 3e-4), (1e-4, 3e-4, 1e-3), 1200, 10_000, (0, 1, 2)
    ),
}


@dataclass(frozen=True)
class Outcome:
    """What one cell measured; ``test`` is only looked at for the rate that validation chose."""

    task: str
    domain: str
    method: str
    seed: int
    learning_rate: float
    best_epoch: int
    validation: float
    test: float
    seconds: float
    detail: dict[str, float] = field(default_factory=dict)


Method = Callable[[Task, Recipe, int], tuple[float, int, float, dict[str, float]]]
"""(task, recipe, seed) -> (validation metric, best epoch, test metric, detail)."""


def run_study(
    tasks: list[Task],
    methods: dict[str, Method],
    preset: Preset,
    folder: Path,
    wanted: Callable[[Task, str], bool] = lambda task, method: True,
) -> list[Outcome]:
    """Run the wanted cells that are not in ``folder`` yet and return all outcomes that are there then.

    Every method gets the same care: on the smallest task of its kind in a domain (the pilot) all of the
    method's rates are tried, and the one that does best on validation serves the domain's others of its kind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    by_size = sorted(tasks, key=lambda task: sum(map(len, task.train.plain())))
    pilots = {_kind(task): task.name for task in reversed(by_size)}
    for seed in preset.seeds:
        for task in by_size:
            for method, run in methods.items():
                rates = preset.full_rates if method == "full" else preset.upper_rates
                if pilots[_kind(task)] != task.name:
                    rates = _pilot_rate(outcomes, pilots[_kind(task)], method, seed)
                limited = task.limited(preset.train_rows, preset.test_rows, seed)
                for rate in rates:
                    path = folder / f"{task.name.replace('/', '.')}-{method}-{rate:g}-{seed}.json"
                    if path.is_file():
                        outcomes.append(Outcome(**json.loads(path.read_text())))
                    elif wanted(task, method):
                        outcomes.append(_run_cell(limited, method, run, rate, preset, seed, path))
    return outcomes


def _kind(task: Task) -> tuple[str, bool]:
    """Return what tasks must share to share a learning rate: the domain, and whether tokens are labelled."""
    return task.domain, task.is_token


def _run_cell(
    task: Task, method: str, run: Method, rate: float, preset: Preset, seed: int, path: Path
) -> Outcome:
    """Run a cell and keep its outcome at ``path``."""
    started = time.monotonic()
    validation, epoch, test, detail = run(task, Recipe(rate, preset.epochs), seed)
    seconds = round(time.monotonic() - started, 1)
    outcome = Outcome(task.name, task.domain, method, seed, rate, epoch, validation, test, seconds, detail)
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(asdict(outcome), indent=1))
    temporary.replace(path)
    log.info(
        "%s %s rate %g seed %d: validation %.4f, %.0f s", task.name, method, rate, seed, validation, seconds
    )
    return outcome


def _pilot_rate(outcomes: list[Outcome], pilot: str, method: str, seed: int) -> tuple[float, ...]:
    """Return the rate that did best on the pilot's validation rows; none while the pilot has not run."""
    tried = [o for o in outcomes if (o.task, o.method, o.seed) == (pilot, method, seed)]
    return (max(tried, key=lambda outcome: outcome.validation).learning_rate,) if tried else ()


def chosen(outcomes: list[Outcome]) -> list[Outcome]:
    """Return, of each task, method and seed, the outcome whose rate did best on validation."""
    best: dict[tuple[str, str, int], Outcome] = {}
    for outcome in outcomes:
        key = (outcome.task, outcome.method, outcome.seed)
        if key not in best or outcome.validation > best[key].validation:
            best[key] = outcome
    return list(best.values())
