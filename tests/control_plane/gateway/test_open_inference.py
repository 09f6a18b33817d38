"""The Open Inference Protocol: every operation, and every kind of invalid request."""

import gzip
import json
from typing import Any

import pytest
from open_inference_contract import (
    INFER,
    OPERATIONS,
    InferResponse,
    ModelMetadata,
    OutputTensor,
    TensorMetadata,
    check_output,
    error_of,
    infer,
    text_tensor,
)

# --- against the published contract ------------------------------------------------------------------


@pytest.mark.parametrize("model", ["spam", "acme/names"])
def test_every_operation_of_the_published_protocol_is_served(acme: Any, model: str) -> None:
    for operation in OPERATIONS:
        path = operation.path.format(model=model, version="1")
        body = {"inputs": [text_tensor(["see Rome"])]} if operation.method == "POST" else None
        response = acme.call(operation.method, path, json=body, follow_redirects=False)
        assert response.status_code == 200, (path, response.text)
        operation.success.model_validate_json(response.content)


def test_other_methods_are_405_with_the_allowed_ones(acme: Any) -> None:
    for operation in OPERATIONS:
        path = operation.path.format(model="spam", version="1")
        allowed = ["HEAD", "GET"] if operation.method == "GET" else ["POST"]
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
            response = acme.call(method, path)
            if method in allowed:
                assert response.status_code != 405, (method, path)
            else:
                assert response.status_code == 405, (method, path)
                assert response.headers["allow"] == ", ".join(allowed)
                assert method == "HEAD" or error_of(response, 405)


def test_head_is_served_where_get_is(acme: Any) -> None:
    for operation in OPERATIONS:
        if operation.method == "GET":
            response = acme.call("HEAD", operation.path.format(model="spam", version="1"))
            assert (response.status_code, response.content) == (200, b""), operation.path


@pytest.mark.parametrize("model", ["spam", "names"])
def test_outputs_match_the_metadata(acme: Any, model: str) -> None:
    promised = ModelMetadata.model_validate_json(acme.call("GET", f"/v2/models/{model}").content)
    answer = InferResponse.model_validate_json(infer(acme, model, ["see Rome", "yes"]).content)
    assert promised.inputs == [TensorMetadata(name="text", datatype="BYTES", shape=[-1])]
    assert answer.model_version in promised.versions
    for tensor, expected in zip(answer.outputs, promised.outputs, strict=True):
        assert isinstance(tensor, OutputTensor)
        check_output(tensor, expected)


FAILURES: list[tuple[str, str, dict[str, Any], int]] = [
    ("GET", "/v2/unknown", {}, 404),
    ("GET", "/v2/models/absent", {}, 404),
    ("GET", "/v2/models/absent/ready", {}, 404),
    ("POST", "/v2/models/absent/infer", {"json": {"inputs": [text_tensor(["x"])]}}, 404),
    ("GET", "/v2/models/spam/versions/2", {}, 404),
    ("GET", "/v2/models/spam/versions/2/ready", {}, 404),
    ("GET", "/v2/models/spam/versions/01", {}, 404),
    ("POST", "/v2/models/spam/versions/0/infer", {"json": {"inputs": [text_tensor(["x"])]}}, 404),
    ("GET", "/v2/models/a/b/c/d", {}, 404),
    ("GET", "/v2/models/spam", {"headers": {"Authorization": "Bearer wrong"}}, 401),
    ("POST", INFER, {"content": b"x" * (2 << 20)}, 413),
    ("POST", INFER, {"content": b"x", "headers": {"Content-Encoding": "br"}}, 415),
    ("POST", INFER, {"content": b"{"}, 400),
    ("POST", INFER, {"content": b""}, 400),
]


def test_every_error_has_the_protocols_format(acme: Any) -> None:
    for method, path, options, status in FAILURES:
        assert error_of(acme.call(method, path, **options), status), path


def test_a_model_that_is_not_ready_is_an_error(acme: Any, cluster: Any, runtime: Any) -> None:
    cluster.declare_adapter("fresh")
    for path in ("/v2/models/fresh/ready", "/v2/models/fresh/infer"):
        body = {"inputs": [text_tensor(["x"])]}
        response = acme.call("POST" if "infer" in path else "GET", path, json=body)
        assert "fresh" in error_of(response, 503)
        assert response.headers["retry-after"]


# --- versions ----------------------------------------------------------------------------------------


def test_a_version_that_is_not_loaded_is_not_answered_by_an_earlier_one(acme: Any, cluster: Any) -> None:
    cluster.retrain("spam", spec="2")
    body = {"inputs": [text_tensor(["yes"])]}
    assert acme.call("POST", INFER, json=body).json()["model_version"] == "1"
    assert acme.call("GET", "/v2/models/spam").json()["versions"] == ["2"]
    error_of(acme.call("GET", "/v2/models/spam/versions/2/ready"), 503)
    error_of(acme.call("POST", "/v2/models/spam/versions/2/infer", json=body), 503)
    error_of(acme.call("GET", "/v2/models/spam/versions/1"), 404)
    counted = acme.call("GET", "/v1/usage?to=2100-01-01&meter=requests").json()["items"]
    assert sum(item["quantity"] for item in counted) <= 1  # what was refused is not billed


def test_a_model_may_have_the_name_of_an_operation(acme: Any, cluster: Any) -> None:
    cluster.adapter("ready")
    cluster.beat(ready=["acme/ready@1"])
    assert acme.call("GET", "/v2/models/ready").json()["name"] == "ready"
    assert acme.call("GET", "/v2/models/ready/ready").json() == {"name": "ready", "ready": True}


# --- requests ----------------------------------------------------------------------------------------


def test_sequence_tasks_return_label_scores_and_labels(acme: Any) -> None:
    assert infer(acme, "spam", ["yes", "nothing"], id="mine").json() == {
        "model_name": "spam",
        "model_version": "1",
        "id": "mine",
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [2], "data": ["yes", "no"]},
            {"name": "scores", "datatype": "FP32", "shape": [2, 2], "data": [0.25, 0.75, 0.75, 0.25]},
            {"name": "labels", "datatype": "BYTES", "shape": [2], "data": ["no", "yes"]},
        ],
    }


def test_token_tasks_return_json(acme: Any) -> None:
    outputs = {
        output["name"]: output["data"] for output in infer(acme, "names", ["see Rome"]).json()["outputs"]
    }
    assert [token["label"] for token in json.loads(outputs["tokens"][0])] == ["O", "B-X"]
    assert json.loads(outputs["entities"][0])[0]["text"] == "Rome"


@pytest.mark.parametrize("given", ["mine", "", "\u00fc" * 200])
def test_the_requests_id_is_returned(acme: Any, given: str) -> None:
    assert infer(acme, "spam", ["yes"], id=given).json()["id"] == given


def test_only_the_requested_outputs_are_returned(acme: Any, runtime: Any) -> None:
    wanted = [{"name": "scores"}, {"name": "label"}]
    outputs = infer(acme, "spam", ["x"], outputs=wanted).json()["outputs"]
    assert [output["name"] for output in outputs] == ["scores", "label"]
    refused = infer(acme, "spam", ["x"], outputs=[{"name": "logits"}])
    assert error_of(refused) == 'There is no output "logits"; there are label, scores, labels.'
    assert len(runtime.requests) == 1  # what is refused is not computed


def test_an_output_cannot_be_requested_twice(acme: Any, runtime: Any) -> None:
    refused = infer(acme, "spam", ["x"], outputs=[{"name": "scores"}] * 1_000)
    assert error_of(refused) == 'outputs names "scores" twice.'
    assert runtime.requests == []


def one(**fields: Any) -> dict[str, Any]:
    """Return a request of one text with these fields of its tensor."""
    return {"inputs": [text_tensor(["yes"], **fields)]}


WRONG: list[tuple[Any, str]] = [
    ("text", "The body must be an object."),
    ({}, "inputs is missing."),
    ({"inputs": "text"}, "inputs must be a list."),
    ({"inputs": [5]}, "inputs.0 must be an object."),
    ({"inputs": []}, 'inputs has 0 tensors; send one, named "text".'),
    ({"inputs": [text_tensor(["a"]), text_tensor(["b"])]}, 'inputs has 2 tensors; send one, named "text".'),
    ({"inputs": [], "id": 5}, "id must be a string."),
    ({"inputs": [], "outputs": [{}]}, "outputs.0.name is missing."),
    (one(name="input0"), 'There is no input "input0"; send one named "text".'),
    (one(name=5), "inputs.0.name must be a string."),
    (one(datatype="FP32"), 'inputs.0.datatype is "FP32"; it must be BYTES.'),
    (one(datatype="bytes"), 'inputs.0.datatype is "bytes"; it must be BYTES.'),
    (one(datatype=None), "inputs.0.datatype must be a string."),
    (one(shape=["1"]), "inputs.0.shape.0 must be a whole number."),
    (one(shape=[1.0]), "inputs.0.shape.0 must be a whole number."),
    (one(shape=[True]), "inputs.0.shape.0 must be a whole number."),
    (one(shape=[None]), "inputs.0.shape.0 must be a whole number."),
    (one(shape=1), "inputs.0.shape must be a list."),
    (one(shape=[-1]), "inputs.0.shape.0 must be greater than or equal to 0."),
    (one(shape=[2**64]), "inputs.0.shape.0 must be less than 18446744073709551616."),
    (one(shape=[2]), "inputs.0.shape is [2]; the data has 1 texts."),
    (one(shape=[]), "inputs.0.shape is []; it must be [texts], or [texts, 1]."),
    (one(shape=[1, 1, 1]), "inputs.0.shape is [1, 1, 1]; it must be [texts], or [texts, 1]."),
    (one(shape=[1, 2]), "inputs.0.shape is [1, 2]; it must be [texts], or [texts, 1]."),
    (one(data=[7]), "inputs.0.data.0 must be a string."),
    (one(data=[None]), "inputs.0.data.0 must be a string."),
    (one(data="yes"), "inputs.0.data must be a list."),
    (one(data=None), "inputs.0.data is missing."),
    (one(data=[["yes"]]), "inputs.0.data.0 is a list, which does not fit the shape [1]."),
    (
        one(shape=[1, 1], data=[["a", "b"]]),
        "inputs.0.data.0 is a list, which does not fit the shape [1, 1].",
    ),
    (
        one(shape=[1, 1], data=[[["a"]]]),
        "inputs.0.data.0 is a list, which does not fit the shape [1, 1].",
    ),
    (
        one(data=["\ud800"]),
        "inputs.0.data.0 has a lone surrogate and is not valid Unicode.",
    ),
    (
        one(parameters={"shared_memory_region": "r"}),
        "inputs.0.parameters: shared_memory_region is not supported here.",
    ),
    (
        one(parameters={"binary_data_size": "3"}),
        "inputs.0.parameters.binary_data_size must be a whole number.",
    ),
    (
        {**one(), "outputs": [{"name": "label", "parameters": {"classification": 3}}]},
        "outputs.0.parameters: classification is not supported here.",
    ),
    ({**one(), "parameters": {"sequence_id": 1}}, "parameters: sequence_id is not supported here."),
    (
        {**one(), "parameters": {"binary_data_output": "yes"}},
        "parameters.binary_data_output must be true or false.",
    ),
]


def test_invalid_tensors_are_explained(acme: Any, runtime: Any) -> None:
    for body, message in WRONG:
        assert error_of(acme.call("POST", INFER, content=json.dumps(body).encode())) == message
    assert runtime.requests == []


def test_unknown_parameters_are_ignored(acme: Any) -> None:
    body = one(parameters={"content_type": "str"}) | {"parameters": {"priority": 1}, "model_name": "other"}
    assert acme.call("POST", INFER, json=body).status_code == 200


def test_data_may_be_flat_or_nested(acme: Any) -> None:
    for data in ([["yes"], ["no"]], ["yes", "no"]):
        body = {"inputs": [text_tensor(["yes", "no"], shape=[2, 1], data=data)]}
        assert acme.call("POST", INFER, json=body).json()["outputs"][0]["data"] == ["yes", "no"]


def test_a_body_is_read_as_json_with_any_content_type(acme: Any) -> None:
    for kind in ("application/x-www-form-urlencoded", "application/octet-stream", "application/json"):
        response = acme.call(
            "POST", INFER, content=json.dumps(one()).encode(), headers={"Content-Type": kind}
        )
        assert response.status_code == 200, kind


def test_a_body_may_be_gzip(acme: Any) -> None:
    headers = {"Content-Encoding": "gzip"}
    packed = gzip.compress(json.dumps(one()).encode())
    assert acme.call("POST", INFER, content=packed, headers=headers).status_code == 200
    bomb = gzip.compress(b'{"inputs": "' + bytes(64 << 20))
    assert len(bomb) < 1 << 20
    error_of(acme.call("POST", INFER, content=bomb, headers=headers), 413)
