"""The training benchmark: steps are timed, and pairs are trained, in both precisions."""

import json
from pathlib import Path

import numpy as np
import pytest

from hmi_bench.accuracy.fits import Answers
from hmi_bench.accuracy.paired import Pair, difference
from hmi_bench.accuracy.precisions import PrecisionPlan, run_precisions
from hmi_bench.training import run_training


def test_the_report_has_every_step_in_both_precisions(tmp_path: Path) -> None:
    table = run_training(tmp_path, base_name="tiny", rounds=2)
    steps = json.loads((tmp_path / "training.json").read_text())["steps"]
    assert [step["step"] for step in steps] == [
        "distillation of a Domain",
        "teacher",
        "adapter, compressed",
        "adapter, direct LoRA",
        "adapter, bottleneck",
    ]
    assert all(min(step["float32"], step["bfloat16"], step["ratio"]) > 0 for step in steps)
    assert len(table.splitlines()) == 2 + len(steps)


def write_task(folder: Path) -> None:
    folder.mkdir(parents=True)
    rows = [
        {"text": f"{word} the {place} again", "label": word}
        for word in ("open", "shut")
        for place in "abcdef"
    ]
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))


def test_pairs_have_the_same_rows_and_are_not_trained_again(tmp_path: Path) -> None:
    for name in ("doors", "gates"):
        write_task(tmp_path / "data" / "house" / name)
    plan = PrecisionPlan(
        tmp_path / "data", base="tiny", seeds=(0,), rows=4, validation_rows=6, epochs=1, steps=2, rank=4
    )
    run_precisions(tmp_path, plan)
    pairs = json.loads((tmp_path / "training-accuracy.json").read_text())["pairs"]
    for kind in ("adapters as stored", "before compression"):
        found = [pair[kind] for pair in pairs]
        assert [(pair["task"], pair["rows"]) for pair in found] == [("house/doors", 26), ("house/gates", 26)]
        assert all(pair["first_loss"] != pair["second_loss"] for pair in found)
    changed = {kind: {**pair, "first": 0.25, "second": 0.75} for kind, pair in pairs[0].items()}
    (plan.folder(tmp_path) / "house.doors-0.json").write_text(json.dumps(changed))
    report = run_precisions(tmp_path, plan)
    assert "| 25.00 | 75.00 | +50.00 |" in report


def answers(right: list[bool]) -> Answers:
    return Answers(0.5, np.array(right, dtype=np.int64), np.array(right))


def test_the_error_of_a_difference_is_from_rows_or_from_the_spread_of_pairs() -> None:
    pair = Pair.of("one", 0, answers([True, False, True, True]), answers([True, True, False, False]))
    assert (pair.only_first, pair.only_second, pair.other_predictions) == (2, 1, 3)
    found = difference([pair])
    assert (found.mean, found.error) == (-25.0, pytest.approx(100 * np.sqrt(3) / 4))
    same, better = answers([False, False]), answers([True, True])
    spread = difference([Pair.of("one", 0, same, same), Pair.of("one", 1, same, better)])
    assert (spread.mean, spread.error) == (50.0, pytest.approx(50.0))
    two_tasks = difference([pair, Pair.of("two", 0, same, same)])
    assert (two_tasks.mean, two_tasks.error) == (-12.5, pytest.approx(found.error / 2))
