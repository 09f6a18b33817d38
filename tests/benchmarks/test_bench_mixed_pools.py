"""The mixed pools benchmark with its real processes and a tiny model, and its comparison of answers."""

import json
import string
from pathlib import Path

import pytest

from hmi_api.internal.inference import RowResult
from hmi_bench.mixed_pools.benchmark import MixedPoolsPlan, run_mixed_pools
from hmi_bench.mixed_pools.clients import Difference, difference

LABELS = ("early", "late")


def write_task(folder: Path, words: str) -> None:
    """Write a task whose label depends on the last letter of each word."""
    folder.mkdir(parents=True)
    for split, number in (("train", 24), ("validation", 8), ("test", 6)):
        rows = [
            {"text": f"aaa{words[row % 4]} aab{words[row % 3]} aac{letter}", "label": label}
            for row in range(number // 2)
            for letter, label in zip(words[:2], LABELS, strict=True)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))


def test_two_runtimes_serve_the_same_and_are_compared(tmp_path: Path) -> None:
    write_task(tmp_path / "data" / "one", string.ascii_lowercase[:4])
    write_task(tmp_path / "data" / "two", string.ascii_lowercase[4:8])
    plan = MixedPoolsPlan(
        data=tmp_path / "data",
        base="tiny",
        pairs=[("float32", "int8")],
        clients=2,
        texts=2,
        seconds=0.5,
        rounds=1,
        epochs=1,
    )
    report = run_mixed_pools(tmp_path, plan)
    (pair,) = json.loads((tmp_path / "mixed-pools.json").read_text())["pairs"]
    assert "| float32 + int8 |" in report
    assert pair["single_on"] == "float32"
    for measured in (pair["alone"], pair["together"]):
        assert measured["spread"]["texts_a_second"] > 0
        assert measured["spread"]["p50"] <= measured["spread"]["p99"]
        assert sum(measured["shares"]) == pytest.approx(1)
        assert min(measured["shares"]) > 0
    assert pair["alone"]["single"] is None
    assert pair["together"]["single"]["texts_a_second"] > 0
    # 8 texts for validation and 6 to test, by two tasks; each also answers the other's.
    assert (pair["own"]["answers"], pair["foreign"]["answers"]) == (28, 28)
    assert 0 < pair["own"]["largest"] < 0.5


def result(*scores: float) -> RowResult:
    return RowResult(labels=["no", "yes"], scores=list(scores))


def test_other_labels_are_counted_with_their_margin() -> None:
    first = [result(0.9, 0.1), result(0.52, 0.48), result(0.3, 0.7)]
    second = [result(0.8, 0.2), result(0.49, 0.51), result(0.3, 0.7)]
    found = difference(first, second)
    assert found == Difference(3, 1, pytest.approx(0.1), pytest.approx(0.04))
    assert difference(first, first) == Difference(3, 0, 0.0, 0.0)
