"""Binary tensors of Triton's extension of the Open Inference Protocol."""

import gzip
import json
import struct
from typing import Any

from open_inference_contract import (
    INFER,
    BinaryOutputTensor,
    InferResponse,
    OutputTensor,
    ServerMetadata,
    error_of,
    infer,
    text_tensor,
)


def packed_texts(texts: list[str]) -> bytes:
    """Return the elements of a BYTES tensor in the extension's format."""
    encoded = [text.encode() for text in texts]
    return b"".join(struct.pack("<I", len(text)) + text for text in encoded)


def send_binary(
    tenant: Any, header: dict[str, Any], tail: bytes, *, length: Any = None, **headers: str
) -> Any:
    """Send JSON and what follows it."""
    content = json.dumps(header).encode()
    headers = {"Inference-Header-Content-Length": str(len(content) if length is None else length), **headers}
    return tenant.call("POST", INFER, content=content + tail, headers=headers)


def binary_input(tail: bytes, count: int) -> dict[str, Any]:
    """Return the tensor whose data is ``tail``."""
    parameters = {"binary_data_size": len(tail)}
    return {"name": "text", "datatype": "BYTES", "shape": [count], "parameters": parameters}


def read_binary(response: Any) -> tuple[InferResponse, dict[str, bytes]]:
    """Return an answer's JSON, and the binary data of its outputs by name."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/octet-stream"
    length = int(response.headers["inference-header-content-length"])
    header = InferResponse.model_validate_json(response.content[:length])
    rest, data = response.content[length:], {}
    for tensor in header.outputs:
        if isinstance(tensor, BinaryOutputTensor):
            size = tensor.parameters["binary_data_size"]
            data[tensor.name], rest = rest[:size], rest[size:]
    assert rest == b""
    return header, data


def test_the_server_lists_the_binary_extension(client: Any) -> None:
    assert ServerMetadata.model_validate_json(client.get("/v2").content).extensions == ["binary_tensor_data"]


def test_texts_may_be_binary_data_after_the_json(acme: Any, runtime: Any) -> None:
    tail = packed_texts(["yes", "\u00fcber"])
    answer = send_binary(acme, {"inputs": [binary_input(tail, 2)]}, tail).json()
    assert answer["outputs"][0]["data"] == ["yes", "no"]
    assert [row.text for row in runtime.requests[0].rows] == ["yes", "\u00fcber"]


def test_a_gzip_body_may_have_binary_tensors(acme: Any) -> None:
    tail = packed_texts(["yes"])
    header = json.dumps({"inputs": [binary_input(tail, 1)]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(header)), "Content-Encoding": "gzip"}
    response = acme.call("POST", INFER, content=gzip.compress(header + tail), headers=headers)
    assert response.json()["outputs"][0]["data"] == ["yes"]


def test_outputs_may_be_binary_data_after_the_json(acme: Any) -> None:
    header, data = read_binary(
        infer(acme, "spam", ["yes", "nothing"], parameters={"binary_data_output": True}, id="")
    )
    assert header.id == ""
    assert data["label"] == packed_texts(["yes", "no"])
    assert data["scores"] == struct.pack("<4f", 0.25, 0.75, 0.75, 0.25)
    assert data["labels"] == packed_texts(["no", "yes"])


def test_the_parameter_of_an_output_overrides_that_of_the_request(acme: Any) -> None:
    wanted = [{"name": "label", "parameters": {"binary_data": False}}, {"name": "scores"}]
    header, data = read_binary(
        infer(acme, "spam", ["yes"], parameters={"binary_data_output": True}, outputs=wanted)
    )
    assert isinstance(header.outputs[0], OutputTensor)
    assert set(data) == {"scores"}
    only = [{"name": "scores", "parameters": {"binary_data": True}}, {"name": "label"}]
    _, data = read_binary(infer(acme, "spam", ["yes"], outputs=only))
    assert set(data) == {"scores"}


TAIL = packed_texts(["yes"])
WRONG_TAILS: list[tuple[dict[str, Any], bytes, Any, str]] = [
    (
        binary_input(TAIL, 1),
        TAIL[:-1],
        None,
        "inputs.0 has a binary_data_size of 7; 6 bytes follow the JSON.",
    ),
    (
        binary_input(TAIL, 1),
        TAIL + b"x",
        None,
        "inputs.0 has a binary_data_size of 7; 8 bytes follow the JSON.",
    ),
    (binary_input(TAIL, 2), TAIL, None, "inputs.0.shape is [2]; the data has 1 texts."),
    (
        binary_input(TAIL[:2], 1),
        TAIL[:2],
        None,
        "The binary data of inputs.0 is cut off in the length of text 0.",
    ),
    (
        binary_input(b"\xff" * 8, 1),
        b"\xff" * 8,
        None,
        "The binary data of inputs.0 is cut off in text 0, of 4294967295 bytes.",
    ),
    (binary_input(b"\x01\0\0\0\xff", 1), b"\x01\0\0\0\xff", None, "Text 0 of inputs.0 is not UTF-8."),
    (
        {**binary_input(TAIL, 1), "data": ["yes"]},
        TAIL,
        None,
        "inputs.0 has both data and a binary_data_size; send one of them.",
    ),
    (text_tensor(["yes"]), b"xx", None, "2 bytes follow the JSON, and no input has a binary_data_size."),
    (
        text_tensor(["yes"]),
        b"",
        10_000,
        "Inference-Header-Content-Length must be the length of the JSON, at most the body's 82 bytes.",
    ),
    (
        text_tensor(["yes"]),
        b"",
        "-1",
        "Inference-Header-Content-Length must be the length of the JSON, at most the body's 82 bytes.",
    ),
    (text_tensor(["yes"]), b"", 5, "The body is not valid JSON."),
]


def test_errors_in_binary_data_are_explained(acme: Any, runtime: Any) -> None:
    for tensor, tail, length, message in WRONG_TAILS:
        assert error_of(send_binary(acme, {"inputs": [tensor]}, tail, length=length)) == message
    assert runtime.requests == []
