"""``/classify``: from a tenant's key to a runtime's results and the recorded usage."""

import time
from typing import Any

import pytest

from hmi_api.internal.inference import RowError


def usage_of(tenant: Any, **wanted: int) -> dict[str, int]:
    """Return the tenant's usage of inference by meter, once it is as expected or after ten seconds."""
    deadline = time.monotonic() + 10
    while True:
        parameters = {"to": "2100-01-01T00:00:00Z"}
        items = tenant.call("GET", "/v1/usage", params=parameters).json()["items"]
        found = {item["meter"]: item["quantity"] for item in items if item["meter"] != "training_seconds"}
        if found == wanted or time.monotonic() > deadline:
            return found


def test_a_text_is_classified_as_vllm_does(acme: Any, runtime: Any) -> None:
    response = acme.classify(model="spam", input="say yes now")
    assert response.status_code == 200
    body = response.json()
    assert body["id"].startswith("classify-")
    assert body["object"] == "list"
    assert body["model"] == "spam"
    assert body["data"] == [{"index": 0, "label": "yes", "probs": [0.25, 0.75], "num_classes": 2}]
    assert body["labels"] == ["no", "yes"]
    assert body["usage"] == {"prompt_tokens": 3, "total_tokens": 3, "completion_tokens": 0}
    assert runtime.tokens_shown == ["Bearer internal-token-of-the-tests"]


def test_several_texts_are_one_request_to_the_runtime(acme: Any, runtime: Any) -> None:
    body = acme.classify(model="acme/spam", input=["yes", "nothing"]).json()
    assert [item["label"] for item in body["data"]] == ["yes", "no"]
    assert [[row.text for row in request.rows] for request in runtime.requests] == [["yes", "nothing"]]


def test_answered_requests_are_metered(acme: Any) -> None:
    acme.classify(model="spam", input=["one two", "three"])
    assert usage_of(acme, requests=1, rows=2, prompt_tokens=3) == {
        "requests": 1,
        "rows": 2,
        "prompt_tokens": 3,
    }


def test_a_token_task_returns_tokens_and_entities(acme: Any) -> None:
    [item] = acme.classify(model="names", input="meet John Smith today").json()["data"]
    assert [token["label"] for token in item["tokens"]] == ["O", "B-X", "I-X", "O"]
    assert item["entities"] == [{"text": "John Smith", "start": 5, "end": 15, "label": "X", "score": 0.5}]
    assert "probs" not in item


def test_a_text_may_be_a_list_of_words(acme: Any, runtime: Any) -> None:
    [item] = acme.classify(model="names", input=[["meet", "John", "Smith"]]).json()["data"]
    assert item["entities"][0]["text"] == "John Smith"
    assert runtime.requests[0].rows[0].words == ["meet", "John", "Smith"]


def test_fan_out_is_one_request_with_adjacent_rows_of_each_text(acme: Any, runtime: Any) -> None:
    body = acme.classify(models=["spam", "topic", "names"], input=["yes", "No"]).json()
    assert [part["model"] for part in body["models"]] == ["spam", "topic", "names"]
    assert [item["label"] for item in body["models"][0]["data"]] == ["yes", "no"]
    assert body["models"][2]["data"][1]["entities"][0]["text"] == "No"
    assert body["usage"]["prompt_tokens"] == 6
    [request] = runtime.requests
    assert [(row.text, row.adapter) for row in request.rows] == [
        (text, f"acme/{model}") for text in ("yes", "No") for model in ("spam", "topic", "names")
    ]
    assert usage_of(acme, requests=3, rows=6, prompt_tokens=6) == {
        "requests": 3,
        "rows": 6,
        "prompt_tokens": 6,
    }


def test_in_a_fan_out_a_failed_model_is_not_billed_and_the_others_answer(acme: Any, runtime: Any) -> None:
    runtime.row_errors["acme/topic"] = RowError(status=500, reason="DigestMismatch", message="Damaged.")
    body = acme.classify(model="spam", models=["topic", "absent"], input="yes").json()
    good, broken, absent = body["models"]
    assert good["data"][0]["label"] == "yes"
    assert broken["error"]["code"] == "DigestMismatch"
    assert absent["error"]["code"] == "ModelNotFound"
    assert usage_of(acme, requests=1, rows=1, prompt_tokens=1) == {
        "requests": 1,
        "rows": 1,
        "prompt_tokens": 1,
    }


def test_a_fan_out_in_which_all_models_fail_is_an_error(acme: Any) -> None:
    response = acme.classify(models=["absent", "gone"], input="yes")
    assert response.status_code == 404


def test_a_model_named_twice_runs_once(acme: Any, runtime: Any) -> None:
    body = acme.classify(models=["spam", "acme/spam", "spam"], input="yes").json()
    assert [part["model"] for part in body["models"]] == ["spam"]
    assert len(runtime.requests[0].rows) == 1


def test_the_clients_request_id_is_echoed_but_not_used_for_billing(acme: Any) -> None:
    for _ in range(2):
        response = acme.call(
            "POST", "/classify", json={"model": "spam", "input": "yes"}, headers={"X-Request-Id": "mine"}
        )
        assert response.headers["x-request-id"] == "mine"
    assert usage_of(acme, requests=2, rows=2, prompt_tokens=2)["requests"] == 2


def test_another_tenants_model_is_404_like_an_unknown_one(acme: Any, other_tenant: Any) -> None:
    assert acme.classify(model="spam", input="yes").status_code == 200
    theirs = other_tenant.classify(model="acme/spam", input="yes")
    nobodys = other_tenant.classify(model="acme/none", input="yes")
    assert theirs.status_code == nobodys.status_code == 404
    assert theirs.json()["error"] | {"message": ""} == nobodys.json()["error"] | {"message": ""}
    assert other_tenant.classify(model="spam", input="yes").status_code == 404


WRONG_KEYS = ["", "Bearer wrong", "Bearer hmi_0000000000000000_" + "0" * 64, "Basic abc"]


def test_a_wrong_key_is_refused(acme: Any) -> None:
    for key in WRONG_KEYS:
        response = acme.call(
            "POST", "/classify", json={"model": "spam", "input": "x"}, headers={"Authorization": key}
        )
        assert response.status_code == 401
        assert response.json()["error"]["type"] == "authentication_error"


def test_a_model_that_is_not_loaded_is_503_with_retry_after(acme: Any, cluster: Any) -> None:
    cluster.declare_adapter("fresh")
    response = acme.classify(model="fresh", input="yes")
    assert response.status_code == 503
    assert response.headers["retry-after"] == "10"
    assert response.json()["error"]["code"] == "ModelNotTrained"
    assert acme.call("GET", "/v2/models/fresh/ready").status_code == 503


BAD_INPUT: list[tuple[Any, str]] = [
    ({"model": "spam", "input": ""}, "EmptyInput"),
    ({"model": "spam", "input": " \n\t"}, "EmptyInput"),
    ({"model": "spam", "input": []}, "EmptyInput"),
    ({"model": "spam", "input": ["fine", "  "]}, "EmptyInput"),
    ({"model": "names", "input": [[]]}, "EmptyInput"),
    ({"model": "names", "input": [["a", " "]]}, "EmptyInput"),
    ({"model": "spam", "input": "x" * 100_001}, "TextTooLong"),
    ({"model": "spam", "input": ["x"] * 257}, "TooManyTexts"),
    ({"models": [f"m{i}" for i in range(33)], "input": "x"}, "TooManyModels"),
    ({"input": "x"}, "MissingModel"),
    ({"models": [], "input": "x"}, "MissingModel"),
    ({"model": "spam"}, "InvalidField"),
    ({"model": "spam", "input": 5}, "InvalidField"),
    ({"model": "spam", "input": "x", "truncate": True}, "InvalidField"),
    ([], "InvalidField"),
]


def test_invalid_input_is_400_with_an_explanation(acme: Any, runtime: Any) -> None:
    for body, code in BAD_INPUT:
        response = acme.call("POST", "/classify", json=body)
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert error["code"] == code
        assert error["type"] == "invalid_request_error"
        assert runtime.requests == []


MISSHAPEN: list[tuple[Any, str | None, str]] = [
    ({"model": "spam", "input": ["a", 5]}, "input.1", "input.1 must be a string or a list."),
    ({"model": "spam", "input": 5}, "input", "input must be a string or a list."),
    ({"model": "spam", "input": {"list": []}}, "input", "input must be a string or a list."),
    ({"model": "names", "input": [["a"], ["b", None]]}, "input.1.1", "input.1.1 must be a string."),
    ({"models": ["spam", 7], "input": "x"}, "models.1", "models.1 must be a string."),
    ({"model": "s" * 128, "input": "x"}, "model", "model must have at most 127 characters."),
    ({"model": "spam"}, "input", "input is missing."),
    ({"model": "spam", "input": "x", "truncate": True}, "truncate", "truncate is not a known field."),
    (["spam"], None, "The body must be an object."),
]


@pytest.mark.parametrize(("body", "param", "message"), MISSHAPEN)
def test_invalid_fields_are_explained_in_terms_of_json(
    acme: Any, body: Any, param: str | None, message: str
) -> None:
    error = acme.call("POST", "/classify", json=body).json()["error"]
    assert (error["param"], error["message"]) == (param, message)


def test_a_lone_surrogate_is_reported_with_its_position(acme: Any) -> None:
    content = b'{"model": "spam", "input": ["fine", "\\ud800"]}'
    error = acme.call("POST", "/classify", content=content).json()["error"]
    assert error["param"] == "input.1"
    assert error["message"].startswith("input.1: the text has a lone surrogate")


def test_a_body_with_many_errors_is_refused_at_the_first(acme: Any) -> None:
    begun = time.monotonic()
    response = acme.classify(model="spam", input=[5] * 300_000)
    assert response.json()["error"]["param"] == "input.0"
    assert time.monotonic() - begun < 5  # to tell of all took the event loop 8 s


def test_a_text_too_long_for_the_runtime_is_400_with_its_message(acme: Any, runtime: Any) -> None:
    message = "The text has 700 tokens; the base model's limit is 512."
    runtime.row_errors["acme/spam"] = RowError(status=400, reason="TextTooLong", message=message)
    response = acme.classify(model="spam", input="long")
    assert response.status_code == 400
    assert response.json()["error"] == {
        "message": message,
        "type": "invalid_request_error",
        "param": "input.0",
        "code": "TextTooLong",
    }


def test_malformed_json_is_400(acme: Any) -> None:
    headers = {"Content-Type": "application/json"}
    for content in (b"{", b"", b"\xff\xfe", b'{"model": "spam", "input": "\\ud800"}', b"[" * 10_000):
        response = acme.call("POST", "/classify", content=content, headers=headers)
        assert response.status_code == 400, content
        assert "error" in response.json()


@pytest.mark.parametrize(
    "kind", ["application/x-www-form-urlencoded", "text/plain", "application/json; charset=utf-8", None]
)
def test_a_body_is_read_as_json_with_any_content_type(acme: Any, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    content = b'{"model": "spam", "input": "yes"}'
    assert acme.call("POST", "/classify", content=content, headers=headers).status_code == 200
    form = acme.call("POST", "/classify", content=b"model=spam&input=yes", headers=headers)
    assert (form.status_code, form.json()["error"]["code"]) == (400, "MalformedJson")


def test_no_body_is_read_without_valid_credentials(client: Any) -> None:
    response = client.post("/classify", content=b"{", headers={"Content-Type": "application/json"})
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"


def test_a_huge_body_is_413(acme: Any) -> None:
    response = acme.classify(model="spam", input="x" * (2 << 20))
    assert response.status_code == 413
    assert response.json()["error"]["type"] == "invalid_request_error"
