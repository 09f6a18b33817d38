"""The other protocols: the Open Inference Protocol, OpenAI's list of models, health."""

import json
from typing import Any

import pytest


def infer(tenant: Any, model: str, texts: list[Any], **fields: Any) -> Any:
    """Send texts as the one input."""
    tensor = {"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": texts}
    return tenant.call("POST", f"/v2/models/{model}/infer", json={"inputs": [tensor], **fields})


def test_sequence_tasks_answer_label_scores_and_labels(acme: Any) -> None:
    body = infer(acme, "spam", ["yes", "nothing"], id="mine").json()
    assert body == {
        "model_name": "spam",
        "model_version": "1",
        "id": "mine",
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [2], "data": ["yes", "no"]},
            {"name": "scores", "datatype": "FP32", "shape": [2, 2], "data": [0.25, 0.75, 0.75, 0.25]},
            {"name": "labels", "datatype": "BYTES", "shape": [2], "data": ["no", "yes"]},
        ],
    }


def test_token_tasks_answer_json(acme: Any) -> None:
    outputs = {
        output["name"]: output["data"] for output in infer(acme, "names", ["see Rome"]).json()["outputs"]
    }
    assert [token["label"] for token in json.loads(outputs["tokens"][0])] == ["O", "B-X"]
    assert json.loads(outputs["entities"][0])[0]["text"] == "Rome"


def test_only_the_wanted_outputs_are_given(acme: Any, runtime: Any) -> None:
    assert [
        o["name"] for o in infer(acme, "spam", ["x"], outputs=[{"name": "scores"}]).json()["outputs"]
    ] == ["scores"]
    refused = infer(acme, "spam", ["x"], outputs=[{"name": "logits"}]).json()
    assert refused == {"error": 'There is no output "logits"; there are label, scores, labels.'}
    assert len(runtime.requests) == 1  # what is refused is not computed


OTHER_TENSORS: list[Any] = [
    {"inputs": []},
    {"inputs": [{"name": "text", "datatype": "FP32", "shape": [1], "data": [1.0]}]},
    {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2], "data": ["one"]}]},
    {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [7]}]},
    {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1], "data": ["one"]}]},
    {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["\ud800"]}]},
    {"inputs": "text"},
    {},
]


def test_other_tensors_are_400(acme: Any) -> None:
    for body in OTHER_TENSORS:
        content = json.dumps(body)
        headers = {"Content-Type": "application/json"}
        response = acme.call("POST", "/v2/models/spam/infer", content=content, headers=headers)
        assert response.status_code == 400, response.text
        assert isinstance(response.json()["error"], str)


MISSHAPEN: list[tuple[Any, str]] = [
    ({"inputs": "text"}, "inputs must be a list."),
    ({"inputs": [5]}, "inputs.0 must be an object."),
    ({"inputs": [], "id": 5}, "id must be a string."),
    ({"inputs": [], "outputs": [{}]}, "outputs.0.name is missing."),
    (
        {"inputs": [{"name": "text", "datatype": "BYTES", "shape": ["one"], "data": ["x"]}]},
        "inputs.0.shape.0 must be a whole number.",
    ),
    ("text", "The body must be an object."),
]


@pytest.mark.parametrize(("body", "message"), MISSHAPEN)
def test_what_does_not_fit_is_named_in_words_of_json(acme: Any, body: Any, message: str) -> None:
    assert acme.call("POST", "/v2/models/spam/infer", json=body).json() == {"error": message}


def test_a_body_is_json_whatever_it_is_called(acme: Any) -> None:
    content = json.dumps(
        {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["yes"]}]}
    ).encode()
    for kind in ("application/x-www-form-urlencoded", "application/octet-stream", "application/json"):
        response = acme.call("POST", "/v2/models/spam/infer", content=content, headers={"Content-Type": kind})
        assert response.status_code == 200, kind


def test_nested_data_is_read_in_order(acme: Any) -> None:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [2, 1], "data": [["yes"], ["no"]]}
    body = acme.call("POST", "/v2/models/spam/infer", json={"inputs": [tensor]}).json()
    assert body["outputs"][0]["data"] == ["yes", "no"]


def test_metadata_and_readiness_of_a_model(acme: Any, stranger: Any) -> None:
    metadata = acme.call("GET", "/v2/models/names").json()
    assert metadata["versions"] == ["1"]
    assert metadata["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert acme.call("GET", "/v2/models/acme/names/ready").json() == {"name": "acme/names", "ready": True}
    for path in ("/v2/models/names", "/v2/models/names/ready", "/v2/models/acme/names"):
        assert stranger.call("GET", path).status_code == 404


def test_health_needs_no_key(client: Any) -> None:
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").status_code == 200
    assert client.get("/v2").json()["name"] == "hmi"


def test_models_are_the_tenants_own(acme: Any, stranger: Any, cluster: Any) -> None:
    cluster.declare_adapter("fresh")
    models = acme.call("GET", "/v1/models").json()
    assert models["object"] == "list"
    assert {model["id"]: model["ready"] for model in models["data"]} == {
        "fresh": False,
        "names": True,
        "spam": True,
        "topic": True,
    }
    assert acme.call("GET", "/v1/models/names").json()["task"] == "TokenClassification"
    assert stranger.call("GET", "/v1/models").json()["data"] == []
    assert stranger.call("GET", "/v1/models/acme/spam").status_code == 404


def test_metrics_count_requests_and_tokens(acme: Any, client: Any) -> None:
    acme.classify(model="spam", input="one two three")
    text = client.get("/metrics").text
    assert 'hmi_requests_total{code="200",route="/classify"} 1.0' in text
    assert 'hmi_tokens_total{direction="prompt"} 3.0' in text
    assert "hmi_usage_spool_lag_seconds 0.0" in text
