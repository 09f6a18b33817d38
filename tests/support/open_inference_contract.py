"""The Open Inference Protocol over HTTP, as far as it concerns a server.

The facts are those of its published OpenAPI (kserve/open-inference-protocol, specification/protocol:
open_inference_rest.yaml, with inference_rest.md for what the former leaves open), and for binary tensors
those of Triton's extension (triton-inference-server/server, docs/protocol/extension_binary_data.md). Nothing
here is imported from HMI, so that the contract and the server cannot err together.
"""

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, JsonValue


class _Object(BaseModel):
    """An object of the protocol: fields have exactly their types, and there are no others."""

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())


class Error(_Object):
    """Every failure."""

    error: str


class ServerMetadata(_Object):
    """``GET /v2/``."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(_Object):
    """A tensor of a model; -1 is any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(_Object):
    """``GET /v2/models/M``; versions are those that may be requested."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class Live(_Object):
    """``GET /v2/health/live``."""

    live: bool


class ServerReady(_Object):
    """``GET /v2/health/ready``: the protocol names its field live; other servers name it ready."""

    live: bool
    ready: bool


class ModelReady(_Object):
    """``GET /v2/models/M/ready``."""

    name: str
    ready: bool


class OutputTensor(_Object):
    """A tensor of an answer, whose data is in row-major order."""

    name: str
    shape: list[int]
    datatype: str
    data: list[JsonValue]


class BinaryOutputTensor(_Object):
    """A tensor whose data follows the JSON."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, int]


class InferResponse(_Object):
    """``POST /v2/models/M/infer``."""

    model_name: str
    model_version: str
    id: str
    outputs: list[OutputTensor | BinaryOutputTensor]


@dataclass(frozen=True)
class Operation:
    """One operation of the protocol, and the shape of its success."""

    method: str
    path: str
    success: type[BaseModel]


OPERATIONS = [
    Operation("GET", "/v2", ServerMetadata),
    Operation("GET", "/v2/", ServerMetadata),
    Operation("GET", "/v2/health/live", Live),
    Operation("GET", "/v2/health/ready", ServerReady),
    Operation("GET", "/v2/models/{model}", ModelMetadata),
    Operation("GET", "/v2/models/{model}/ready", ModelReady),
    Operation("POST", "/v2/models/{model}/infer", InferResponse),
    Operation("GET", "/v2/models/{model}/versions/{version}", ModelMetadata),
    Operation("GET", "/v2/models/{model}/versions/{version}/ready", ModelReady),
    Operation("POST", "/v2/models/{model}/versions/{version}/infer", InferResponse),
]

DATATYPES = {
    "BOOL": bool,
    "BYTES": str,
    "FP16": float,
    "FP32": float,
    "FP64": float,
    "INT8": int,
    "INT16": int,
    "INT32": int,
    "INT64": int,
    "UINT8": int,
    "UINT16": int,
    "UINT32": int,
    "UINT64": int,
}
"""The protocol's tensor types and what JSON has for their elements."""


def check_output(tensor: OutputTensor, promised: TensorMetadata) -> None:
    """Assert that an output is what metadata promise, and its data what its own shape and type say."""
    assert (tensor.name, tensor.datatype) == (promised.name, promised.datatype)
    assert len(tensor.shape) == len(promised.shape)
    assert all(want in (-1, have) for have, want in zip(tensor.shape, promised.shape, strict=True))
    elements = 1
    for size in tensor.shape:
        elements *= size
    assert len(tensor.data) == elements
    kind: Any = DATATYPES[tensor.datatype]
    assert all(type(element) is kind for element in tensor.data)


# --- asking a gateway of the tests ---------------------------------------------------------------------

INFER = "/v2/models/spam/infer"


def text_tensor(texts: list[Any], **fields: Any) -> dict[str, Any]:
    """Return texts as the one input."""
    return {"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": texts, **fields}


def infer(tenant: Any, model: str, texts: list[Any], **fields: Any) -> Any:
    """Send texts as the one input."""
    return tenant.call("POST", f"/v2/models/{model}/infer", json={"inputs": [text_tensor(texts)], **fields})


def error_of(response: Any, status: int = 400) -> str:
    """Return the text of an error in the protocol's shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    return Error.model_validate_json(response.content).error
