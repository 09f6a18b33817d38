"""Texts that are too long are refused, or truncated as the request says."""

from typing import Any

import pytest

from hmi_api.internal.inference import InferRow, RowResult, Truncation
from hmi_api.internal.runtimes import AdapterServing
from hmi_api.resources.task_adapter import TaskType
from hmi_runtime.server.loader import AdapterLoader
from hmi_runtime.server.settings import RuntimeSettings

WORDS = ["the", "chain", "slips", "on", "a", "hill", "my", "room", "key", "lost"]
TEXT = " ".join(WORDS)
MOST = 8


@pytest.fixture
def settings(settings: RuntimeSettings) -> RuntimeSettings:
    """Settings of a runtime that serves short texts."""
    return settings.model_copy(update={"max_length": MOST})


@pytest.fixture
def served(models: Any, loader: AdapterLoader) -> AdapterLoader:
    """A runtime with a sequence task and a token task."""
    domain = models.domain("bikes/repair")
    adapters: list[AdapterServing] = [
        models.adapter("acme/topic", domain, labels=3),
        models.adapter("acme/names", domain, seed=3, labels=5, task=TaskType.TOKEN_CLASSIFICATION),
    ]
    for adapter in adapters:
        loader.activate(loader.load(adapter, domain))
    return loader


def answer(loader: AdapterLoader, tokens: int | None = None, side: Any = "right", **row: Any) -> RowResult:
    """Return one row's result."""
    cut = None if tokens is None else Truncation(tokens=tokens, side=side)
    given = {"adapter": "acme/topic", "text": TEXT} | row
    [result] = loader.pipeline.submit([InferRow(**given, truncate=cut)]).result(60)
    return result


def kept(loader: AdapterLoader, text: str) -> RowResult:
    """Return the result of a text that needs no truncation."""
    return answer(loader, text=text)


def test_without_truncation_a_long_text_is_refused(served: AdapterLoader) -> None:
    error = answer(served).error
    assert error is not None
    assert (error.status, error.reason) == (400, "TextTooLong")
    assert "truncate_prompt_tokens" in error.message


@pytest.mark.parametrize("tokens", [3, 5, MOST, -1])
def test_the_first_tokens_are_kept(served: AdapterLoader, tokens: int) -> None:
    left = (MOST if tokens == -1 else tokens) - 2
    result = answer(served, tokens)
    assert result.error is None
    assert result.prompt_tokens == left + 2
    assert result.scores == pytest.approx(kept(served, " ".join(WORDS[:left])).scores, abs=1e-5)


@pytest.mark.parametrize("tokens", [3, 5, MOST, -1])
def test_the_last_tokens_are_kept_if_requested(served: AdapterLoader, tokens: int) -> None:
    left = (MOST if tokens == -1 else tokens) - 2
    result = answer(served, tokens, "left")
    assert result.error is None
    assert result.scores == pytest.approx(kept(served, " ".join(WORDS[-left:])).scores, abs=1e-5)


@pytest.mark.parametrize("row", [{"text": TEXT}, {"text": None, "words": WORDS}])
def test_labels_of_the_kept_words_keep_their_offsets(served: AdapterLoader, row: dict[str, Any]) -> None:
    first = answer(served, 5, adapter="acme/names", **row)
    last = answer(served, 5, "left", adapter="acme/names", **row)
    assert [token.text for token in first.tokens] == WORDS[:3]
    assert [token.text for token in last.tokens] == WORDS[-3:]
    for token in [*first.tokens, *last.tokens]:
        assert TEXT[token.start : token.end] == token.text


def test_truncation_does_not_change_a_short_text(served: AdapterLoader) -> None:
    assert answer(served, 6, text="a hill").scores == pytest.approx(kept(served, "a hill").scores, abs=1e-6)


@pytest.mark.parametrize(("tokens", "reason"), [(1, "TruncationTooShort"), (2, "TruncationTooShort")])
def test_truncation_to_nothing_is_refused(served: AdapterLoader, tokens: int, reason: str) -> None:
    error = answer(served, tokens).error
    assert error is not None
    assert (error.status, error.reason) == (400, reason)


def test_truncation_above_the_limit_is_refused(served: AdapterLoader) -> None:
    error = answer(served, MOST + 1).error
    assert error is not None
    assert (error.status, error.reason) == (400, "TruncationTooLong")
    assert str(MOST) in error.message


def test_rows_of_one_text_may_be_truncated_differently(served: AdapterLoader) -> None:
    rows = [
        InferRow(adapter="acme/topic", text=TEXT, truncate=Truncation(tokens=tokens)) for tokens in (4, 6, 4)
    ]
    first, second, third = served.pipeline.submit(rows).result(60)
    assert (first.prompt_tokens, second.prompt_tokens, third.prompt_tokens) == (4, 6, 4)
    assert first.scores == pytest.approx(third.scores, abs=1e-6)
