"""vLLM's fields of ``/classify``: each has its effect, or is refused by name.

The list is that of vLLM's ClassificationRequest (vllm/entrypoints/pooling: classify/protocol.py and
base/protocol.py), for completions and for chats.
"""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from hmi_api.internal.inference import Truncation

HONOURED: dict[str, list[Any]] = {
    "model": ["spam"],
    "user": ["someone", None],
    "truncate_prompt_tokens": [None, -1, 3, 512],
    "truncation_side": [None, "left", "right"],
    "request_id": ["mine-1"],
    "add_special_tokens": [True, None],
    "padding": ["do_not_pad", None],
    "priority": [0, None],
    "use_activation": [True, None],
    "mm_processor_kwargs": [None],
    "cache_salt": [None],
    "messages": [None],
}
"""Values that ask for nothing else than what HMI does."""

REFUSED: dict[str, list[Any]] = {
    "model": [5, "s" * 128],
    "input": [[1, 2], [[1, 2]], 5, None, {"text": "x"}],
    "user": [5],
    "truncate_prompt_tokens": [-2, 0, 1.5, "3", True, 2**40],
    "truncation_side": ["middle", 1],
    "request_id": ["", "x" * 201, "two\nlines", 5],
    "add_special_tokens": [False, "true", 1],
    "padding": ["max_length", True],
    "priority": [1, -1, "0", False],
    "use_activation": [False, 1],
    "mm_processor_kwargs": [{}, {"a": 1}],
    "cache_salt": ["salt"],
    "messages": [[], [{"role": "user", "content": "x"}]],
    # Of chats, and of other endpoints of vLLM.
    "add_generation_prompt": [False, True],
    "continue_final_message": [False],
    "chat_template": [None, "x"],
    "chat_template_kwargs": [None],
    "media_io_kwargs": [None],
    "encoding_format": ["float"],
    "dimensions": [3],
    "normalize": [True],
}
"""Values that cannot be honoured."""


def test_vllm_fields_are_accepted_with_the_value_of_hmis_behaviour(acme: Any) -> None:
    for field, values in HONOURED.items():
        for value in values:
            response = acme.call("POST", "/classify", json={"model": "spam", "input": "yes", field: value})
            assert response.status_code == 200, (field, value, response.text)
            assert response.json()["data"][0]["label"] == "yes"


def test_other_values_of_vllm_fields_are_refused_with_the_fields_name(acme: Any, runtime: Any) -> None:
    for field, values in REFUSED.items():
        for value in values:
            response = acme.call("POST", "/classify", json={"model": "spam", "input": "yes", field: value})
            assert response.status_code == 400, (field, value, response.text)
            error = response.json()["error"]
            assert field in error["message"], (field, value, error)
    assert runtime.requests == []


def test_the_refusal_of_a_field_says_why(acme: Any) -> None:
    error = acme.classify(model="spam", input="yes", add_special_tokens=False).json()["error"]
    assert "opening and closing tokens" in error["message"]
    assert error["param"] == "add_special_tokens"


def test_every_row_to_the_runtime_says_how_to_truncate(acme: Any, runtime: Any) -> None:
    acme.classify(models=["spam", "topic"], input=["yes", "no"], truncate_prompt_tokens=8)
    acme.classify(model="names", input=[["a", "b"]], truncate_prompt_tokens=-1, truncation_side="left")
    acme.classify(model="spam", input="yes", truncation_side="left")
    first, second, third = runtime.requests
    assert [row.truncate for row in first.rows] == [Truncation(tokens=8, side="right")] * 4
    assert [row.truncate for row in second.rows] == [Truncation(tokens=-1, side="left")]
    assert [row.truncate for row in third.rows] == [None]


@pytest.mark.parametrize("fields", [{"model": "spam"}, {"models": ["spam", "topic"]}])
def test_the_response_has_the_requests_id(acme: Any, fields: dict[str, Any]) -> None:
    assert acme.classify(input="yes", request_id="mine", **fields).json()["id"] == "classify-mine"
    assert len(acme.classify(input="yes", **fields).json()["id"]) == len("classify-") + 32


def test_rows_without_truncation_have_no_truncation_field(
    acme: Any, network: Any, monkeypatch: pytest.MonkeyPatch, client: TestClient
) -> None:
    sent: list[bytes] = []
    post = network.post

    async def noted(url: str, token: str, body: bytes) -> Any:
        sent.append(body)
        return await post(url, token, body)

    monkeypatch.setattr(network, "post", noted)
    acme.classify(model="spam", input="yes")
    assert b"truncate" not in sent[0]
