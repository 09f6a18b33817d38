"""The proof of isolation under churn, in its short form, and that it notices answers that are wrong."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hmi_api.internal.inference import InferRow, RowResult
from hmi_api.internal.runtimes import AdapterServing
from hmi_bench.churn.benchmark import ChurnPlan, WrongAnswers, run_churn
from hmi_bench.churn.clients import TOLERANCE, Checker
from hmi_bench.churn.history import Generation, History
from hmi_runtime.adapters.slot_pool import SlotPool
from hmi_runtime.cache.adapter_cache import AdapterCache

SHORT = ChurnPlan(
    adapters=30,
    cached=8,
    slots=6,
    domains=3,
    clients=8,
    rows=800,
    rows_a_request=4,
    rows_a_change=16,
    changes_a_refresh=12,
    texts=5,
    grace=0.2,
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_no_row_gets_the_answer_of_another_adapter_version_or_domain(tmp_path: Path) -> None:
    table = run_churn(tmp_path, SHORT)
    figures = json.loads((tmp_path / "churn.json").read_text())["figures"]
    assert (figures["answered"], figures["wrong"], figures["bytes_left"]) == (800, 0, 0)
    # Clients wait for changes, so there is one for every 16 rows.
    assert sum(figures["changes"].values()) >= 800 // 16 - 1
    assert figures["changes"]["refreshes"] >= 4
    assert min(figures["changes"][kind] for kind in ("new versions", "forgotten", "created again")) >= 2
    assert figures["loads"] > figures["evicted_from_host"] > 20
    assert figures["slots_written"] > figures["evicted_from_slots"] > 20
    assert figures["largest_difference"] < TOLERANCE
    # An answer of another version, or to another text, would be noticed.
    assert figures["least_between_generations"] > 10 * TOLERANCE
    assert figures["least_between_texts"] > 2 * TOLERANCE
    assert "| of them wrong | 0 |" in table


FEW = replace(SHORT, adapters=12, domains=1, rows=200, changes_a_refresh=1000)


def test_a_slot_that_is_not_written_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, writes = SlotPool.write, iter(range(1_000_000))

    def forgetful(pool: SlotPool, slot: int, weights: Any) -> None:
        if next(writes) % 20 != 19 or pool.traits[slot].labels == 0:
            write(pool, slot, weights)

    monkeypatch.setattr(SlotPool, "write", forgetful)
    with pytest.raises(WrongAnswers, match=r"differs by [\d.]+; allowed: \["):
        run_churn(tmp_path, FEW)


def test_weights_of_an_earlier_version_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, first = AdapterCache.weights, dict[str, Any]()
    monkeypatch.setattr(
        AdapterCache,
        "weights",
        lambda cache, adapter: first.setdefault(adapter.key, weights(cache, adapter)),
    )
    with pytest.raises(WrongAnswers, match=r"differs by [\d.]+; allowed: \["):
        run_churn(tmp_path, FEW)


def generation(number: int, version: int) -> Generation:
    answers = torch.log_softmax(torch.tensor([[0.0, float(number)]]), -1)
    return Generation(number, AdapterServing.model_construct(key="a/b", version=version), answers)


def answer_of(made: Generation) -> RowResult:
    return RowResult(version=made.serving.version, scores=made.answers[0].exp().tolist())


def test_only_versions_that_served_between_request_and_answer_are_allowed() -> None:
    history = History()
    checker = Checker(history, grace=60.0)
    row = InferRow(adapter="a/b", text="text")
    first, second, other = generation(1, 1), generation(2, 2), generation(3, 2)

    def right(made: Generation, submitted: float) -> bool:
        before = checker.wrong_count
        checker.check(row, 0, submitted, answer_of(made))
        return checker.wrong_count == before

    history.begin("a/b", first)
    assert right(first, submitted=0.0)
    assert not right(second, submitted=0.0)  # not yet activated
    history.begin("a/b", second)
    history.end_previous("a/b")
    assert right(first, submitted=0.0)  # it may have been accepted before the change
    assert right(second, submitted=0.0)
    later = float("inf")
    assert not right(first, submitted=later)
    assert right(second, submitted=later)
    assert not right(other, submitted=later)  # the right version's number, another one's answer


def test_a_refusal_is_right_only_while_the_adapter_is_forgotten() -> None:
    history = History()
    checker = Checker(history, grace=60.0)
    row = InferRow(adapter="a/b", text="text")
    refusal = RowResult.model_validate(
        {"error": {"status": 503, "reason": "NotLoaded", "message": "not loaded"}}
    )
    history.begin("a/b", generation(1, 1))
    assert not checker.check(row, 0, 0.0, refusal)
    assert checker.wrong_count == 1
    history.begin("a/b", None)
    assert not checker.check(row, 0, 0.0, refusal)
    assert checker.wrong_count == 1
    assert checker.refused == {"NotLoaded": 2}
